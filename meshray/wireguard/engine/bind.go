package main

import (
	"errors"
	"net"

	"golang.zx2c4.com/wireguard/conn"
)

// bind is wireguard-go's own way to the network, without three of its faults, which a mesh meets: one interface talks to
// peers by IPv4 and by IPv6, others are told its port, and its machine may get another address.
//
//   - It takes the addresses that it sends to from a pool; one that served IPv4 is cut to 4 bytes, and the next IPv6
//     destination is cut to them (https://github.com/WireGuard/wireguard-go/pull/135). So each family has a pool of its
//     own: IPv6 is sent by a copy that shares nothing but the sockets.
//   - Where the kernel has no IPv6 it says that the port is 0.
//   - It sends from the address to which the peer sent, and goes on to try that when this machine has it no more.
type bind struct {
	*conn.StdNetBind
	six *conn.StdNetBind
}

func newBind() *bind { return &bind{StdNetBind: conn.NewStdNetBind().(*conn.StdNetBind)} }

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.StdNetBind = conn.NewStdNetBind().(*conn.StdNetBind)
	receivers, actual, err := b.StdNetBind.Open(port)
	if err == nil && actual == 0 && port == 0 {
		// Without IPv6 the port that the kernel chose is not told: one that is free now is asked for by name.
		b.StdNetBind.Close()
		if port, err = free(); err != nil {
			return nil, 0, err
		}
		return b.Open(port)
	}
	// Nobody has used its lock and its pools yet (of a copied lock vet warns); from now on each has its own.
	six := *b.StdNetBind
	b.six = &six
	if err == nil && actual == 0 {
		actual = port
	}
	return receivers, actual, err
}

// free returns a UDP port that nobody has.
func free() (uint16, error) {
	probe, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return 0, err
	}
	defer probe.Close()
	return uint16(probe.LocalAddr().(*net.UDPAddr).Port), nil
}

// Send implements conn.Bind.
func (b *bind) Send(packets [][]byte, endpoint conn.Endpoint) error {
	way := b.StdNetBind
	if endpoint.DstIP().Is6() {
		way = b.six
	}
	err := way.Send(packets, endpoint)
	var sentWithout conn.ErrUDPGSODisabled
	if err == nil || errors.As(err, &sentWithout) || !endpoint.SrcIP().IsValid() {
		return err
	}
	// The kernel chooses the source; what comes back over the new way is kept for the next packets. A packet that was
	// sent twice is dropped by the peer.
	return way.Send(packets, &conn.StdNetEndpoint{AddrPort: endpoint.(*conn.StdNetEndpoint).AddrPort})
}
