// meshray-engine is WireGuard as a process, for kernels without it and for nodes without root.
//
//	meshray-engine -tun-fd 3 -socket /run/meshray/engine.sock [-mtu 1420]
//
// It is wireguard-go, used as a library, with two differences from the program of that name:
//
//   - The TUN interface was opened by the caller, in whichever network namespace it is to be, and comes as a
//     descriptor. The UDP socket is made here: in the namespace in which the engine runs. So the interface can be
//     inside a namespace of its own while packets leave by the outer one.
//   - The socket on which it is configured (https://www.wireguard.com/xplatform/) is where the caller says.
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
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// version is that of meshray; the linker sets it.
var version = "unknown"

// fixedMTU answers for an interface that may be in another namespace, where its MTU cannot be asked for.
// WireGuard only needs it to know how far a packet may be padded.
type fixedMTU struct {
	tun.Device
	mtu int
}

func (t fixedMTU) MTU() (int, error) { return t.mtu, nil }

func main() {
	log.SetFlags(log.LstdFlags)
	tunFD := flag.Int("tun-fd", -1, "descriptor of the TUN interface, opened with IFF_TUN|IFF_NO_PI|IFF_VNET_HDR")
	socket := flag.String("socket", "", "where to listen for the configuration protocol")
	mtu := flag.Int("mtu", device.DefaultMTU, "of the interface, bytes")
	verbose := flag.Bool("verbose", false, "log every handshake")
	showVersion := flag.Bool("version", false, "print the version and end")
	flag.Parse()
	if *showVersion {
		fmt.Println(version)
		return
	}
	if *tunFD < 0 || *socket == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*tunFD, *socket, *mtu, *verbose); err != nil {
		log.Fatal(err)
	}
}

func run(tunFD int, socket string, mtu int, verbose bool) error {
	// The interface would else outlive the engine in whatever it starts; it starts nothing, but be sure.
	unix.CloseOnExec(tunFD)
	inner, name, err := tun.CreateUnmonitoredTUNFromFD(tunFD)
	if err != nil {
		return fmt.Errorf("descriptor %d is no TUN interface: %w", tunFD, err)
	}
	level := device.LogLevelError
	if verbose {
		level = device.LogLevelVerbose
	}
	engine := device.NewDevice(fixedMTU{inner, mtu}, newBind(), logger(level, name))
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
