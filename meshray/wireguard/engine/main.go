// meshray-engine is WireGuard as a process, for kernels without it and for nodes without root.
//
//	meshray-engine -tun-fd 3 -socket /run/meshray/engine.sock [-mtu 1420]
//
// It is wireguard-go, used as a library, with four differences from the program of that name:
//
//   - The TUN interface was opened by the caller, in whichever network namespace it is to be, and comes as a
//     descriptor. The UDP socket is made here: in the namespace in which the engine runs. So the interface can be
//     inside a namespace of its own while packets leave by the outer one.
//   - The socket on which it is configured (https://www.wireguard.com/xplatform/) is where the caller says.
//   - It reads and writes the interface (tun.go) and the network (bind.go) by iovecs, without copies.
//   - Packets can be encrypted and decrypted by the goroutine that read them (-data-path inline). wireguard.patch and
//     _device/ add that to the library when the engine is built: see builder/.
//
// It ends on SIGTERM and SIGINT, and when the interface is deleted.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// version is that of meshray; the linker sets it.
var version = "unknown"

// coresOfParallel is the number of usable cores from which the parallel data path pays.
const coresOfParallel = 3

func main() {
	log.SetFlags(log.LstdFlags)
	tunFD := flag.Int("tun-fd", -1, "descriptor of the TUN interface, opened with IFF_TUN|IFF_NO_PI|IFF_VNET_HDR")
	socket := flag.String("socket", "", "where to listen for the configuration protocol")
	mtu := flag.Int("mtu", device.DefaultMTU, "of the interface, bytes")
	verbose := flag.Bool("verbose", false, "log every handshake")
	path := flag.String("data-path", "auto", "`inline`: each packet is handled by the goroutine that read it; parallel: by "+
		"workers on all cores; auto: inline on one or two cores")
	showVersion := flag.Bool("version", false, "print the version and end")
	flag.Parse()
	if *showVersion {
		fmt.Println(version)
		return
	}
	inline, err := chooseInline(*path)
	if *tunFD < 0 || *socket == "" || flag.NArg() > 0 || err != nil {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*tunFD, *socket, *mtu, inline, *verbose); err != nil {
		log.Fatal(err)
	}
}

// chooseInline returns whether to use the inline data path.
//
// Inline on two cores or less, one thread runs Go: sending and receiving then share a core with less cost than waking
// each other on two, and the kernel and the programs that use the tunnel need the other.
func chooseInline(path string) (bool, error) {
	// The affinity and the cgroup's limit count, and so does GOMAXPROCS in the environment.
	cores := runtime.GOMAXPROCS(0)
	switch path {
	case "inline", "parallel":
	case "auto":
		path = "parallel"
		if cores < coresOfParallel {
			path = "inline"
		}
	default:
		return false, fmt.Errorf("-data-path is %q, not auto, inline or parallel", path)
	}
	if path == "inline" && cores < coresOfParallel {
		runtime.GOMAXPROCS(1)
	}
	return path == "inline", nil
}

func run(tunFD int, socket string, mtu int, inline, verbose bool) error {
	// The interface would else outlive the engine in whatever it starts; it starts nothing, but be sure.
	unix.CloseOnExec(tunFD)
	overlay, err := openTUN(tunFD, mtu)
	if err != nil {
		return fmt.Errorf("descriptor %d is no usable TUN interface: %w", tunFD, err)
	}
	name := overlay.name
	level := device.LogLevelError
	if verbose {
		level = device.LogLevelVerbose
	}
	engine := device.NewDeviceOfPath(overlay, newBind(inline), logger(level, name), inline)
	defer engine.Close()

	listener, err := listen(socket)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", socket, err)
	}
	defer listener.Close() // which removes the socket as well

	// An interface in another namespace tells nobody here that it is up: the engine is up from the start, and a port
	// that is in use is told to whoever asks for it.
	if err := engine.Up(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}

	failed := make(chan error, 1)
	go serve(engine, listener, failed)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-ended:
		return nil
	case <-engine.Wait():
		return fmt.Errorf("%s is gone", name)
	case err := <-failed:
		return err
	}
}

// listen makes the socket for its owner alone. One that a killed engine left behind is replaced, one on which somebody
// listens is not.
func listen(path string) (net.Listener, error) {
	defer syscall.Umask(syscall.Umask(0o177))
	listener, err := net.Listen("unix", path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return listener, err
	}
	if other, dialled := net.Dial("unix", path); dialled == nil {
		other.Close()
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return net.Listen("unix", path)
}

func serve(engine *device.Device, listener net.Listener, failed chan<- error) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			failed <- err
			return
		}
		go engine.IpcHandle(connection)
	}
}

func logger(level int, name string) *device.Logger {
	result := &device.Logger{Verbosef: device.DiscardLogf, Errorf: log.New(os.Stderr, name+": ", log.LstdFlags).Printf}
	if level >= device.LogLevelVerbose {
		result.Verbosef = result.Errorf
	}
	return result
}
