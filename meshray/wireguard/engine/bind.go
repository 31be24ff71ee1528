package main

import (
	"errors"
	"net"
	"syscall"

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
	for {
		wanted, err := choose(port)
		if err != nil {
			return nil, 0, err
		}
		b.StdNetBind = conn.NewStdNetBind().(*conn.StdNetBind)
		receivers, actual, err := b.StdNetBind.Open(wanted)
		if port == 0 && errors.Is(err, syscall.EADDRINUSE) {
			continue // somebody was faster
		}
		// Nobody has used its lock and its pools yet (of a copied lock vet warns); from now on each has its own.
		six := *b.StdNetBind
		b.six = &six
		if err == nil && actual == 0 {
			actual = wanted
		}
		return receivers, actual, err
	}
}

// choose returns a port that is free for IPv4 in place of 0.
func choose(port uint16) (uint16, error) {
	if port != 0 {
		return port, nil
	}
	probe, err := net.ListenUDP("udp4", nil)
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		return 0, nil // IPv6 alone, which tells its port
	}
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
