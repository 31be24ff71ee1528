package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// socketBuffer is the wanted size of each of a socket's buffers, bytes; as that of wireguard-go.
	socketBuffer = 7 << 20
	// receiveBuffers is the number of datagrams, or of groups of equal ones (UDP_GRO), that one system call receives.
	// All of them together should stay in the processor's cache.
	receiveBuffers = 8
	receiveSize    = 1 << 16
	// segmentsAtOnce is the kernel's limit for UDP_SEGMENT, and so is payloadAtOnce: the largest UDP datagram over IPv4.
	segmentsAtOnce = 64
	payloadAtOnce  = 1<<16 - 1 - 20 - 8
	controlSize    = 128
	// sendControlSize is enough for IPV6_PKTINFO and UDP_SEGMENT.
	sendControlSize = 64
)

// endpoint is where a peer is, and the address and interface of this machine at which its last packet arrived.
//
// Packets go back from there, as WireGuard does, until the engine clears it or the machine no longer has that address.
type endpoint struct {
	remote netip.AddrPort
	local  atomic.Pointer[local]
}

type local struct {
	address netip.Addr
	index   uint32
}

func (e *endpoint) ClearSrc()           { e.local.Store(nil) }
func (e *endpoint) DstIP() netip.Addr   { return e.remote.Addr() }
func (e *endpoint) DstToString() string { return e.remote.String() }
func (e *endpoint) SrcToString() string { return e.SrcIP().String() }

func (e *endpoint) DstToBytes() []byte {
	bytes, _ := e.remote.MarshalBinary()
	return bytes
}

func (e *endpoint) SrcIP() netip.Addr {
	if source := e.local.Load(); source != nil {
		return source.address
	}
	return netip.Addr{}
}

// bind is a conn.Bind that leaves packets where they are: datagrams that the kernel received as a group are handed out
// as parts of one buffer, and packets are gathered from where they were encrypted.
type bind struct {
	// inPlace: datagrams are handed out where they were received, instead of being copied into the caller's buffers.
	inPlace bool

	mutex   sync.RWMutex
	sockets [2]*socket // for IPv4 and IPv6; nil where the kernel lacks it
	scratch sync.Pool
}

func newBind(inPlace bool) *bind {
	return &bind{inPlace: inPlace, scratch: sync.Pool{New: func() any {
		s := new(sending)
		s.write = s.writeNow
		return s
	}}}
}

// ReceivesInPlace tells the inline data path to pass no buffers.
func (b *bind) ReceivesInPlace() bool { return b.inPlace }

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(text string) (conn.Endpoint, error) {
	remote, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	return &endpoint{remote: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())}, nil
}

// Open implements conn.Bind: one socket for IPv4 and one for IPv6, on the same port.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.sockets[0] != nil || b.sockets[1] != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for tries := 0; ; tries++ {
		receivers, actual, err := b.open(port)
		// The port that the kernel chose for IPv4 may be in use for IPv6.
		if port == 0 && errors.Is(err, syscall.EADDRINUSE) && tries < 100 {
			continue
		}
		return receivers, actual, err
	}
}

func (b *bind) open(port uint16) (receivers []conn.ReceiveFunc, _ uint16, err error) {
	for family, network := range []string{"udp4", "udp6"} {
		opened, err := listenUDP(network, port)
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			b.closeAll()
			return nil, 0, err
		}
		port = uint16(opened.conn.LocalAddr().(*net.UDPAddr).Port)
		b.sockets[family] = opened
		receivers = append(receivers, (&receiving{socket: opened, inPlace: b.inPlace}).receive)
	}
	if len(receivers) == 0 {
		return nil, 0, syscall.EAFNOSUPPORT
	}
	return receivers, port, nil
}

// Close implements conn.Bind.
func (b *bind) Close() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.closeAll()
}

func (b *bind) closeAll() (err error) {
	for family, opened := range b.sockets {
		if opened != nil {
			err = errors.Join(err, opened.conn.Close())
		}
		b.sockets[family] = nil
	}
	return err
}

// SetMark implements conn.Bind.
func (b *bind) SetMark(mark uint32) (err error) {
	b.mutex.RLock()
	defer b.mutex.RUnlock()
	for _, opened := range b.sockets {
		if opened == nil {
			continue
		}
		failed := opened.raw.Control(func(fd uintptr) {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
		})
		err = errors.Join(err, failed)
	}
	return err
}

// socket is a UDP socket of one family.
type socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	six  bool
	// segments: the kernel splits a group of packets that is sent at once (UDP_SEGMENT).
	segments atomic.Bool
}

func listenUDP(network string, port uint16) (*socket, error) {
	six := network == "udp6"
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		failed := raw.Control(func(fd uintptr) { err = configureUDP(int(fd), six) })
		return errors.Join(err, failed)
	}}
	listening, err := config.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	opened := &socket{conn: listening.(*net.UDPConn), six: six}
	if opened.raw, err = opened.conn.SyscallConn(); err != nil {
		return nil, errors.Join(err, opened.conn.Close())
	}
	err = opened.raw.Control(func(fd uintptr) {
		_, unsupported := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		opened.segments.Store(unsupported == nil)
	})
	return opened, err
}

func configureUDP(fd int, six bool) error {
	// More than net.core.*mem_max needs CAP_NET_ADMIN; without it a burst loses more packets.
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
	}
	// Kernels before 5.0 lack it: then each datagram arrives alone.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	if !six {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// receiving receives from one socket; one goroutine uses it.
type receiving struct {
	socket  *socket
	inPlace bool

	buffer   []byte
	headers  [receiveBuffers]mmsghdr
	iovecs   [receiveBuffers]unix.Iovec
	names    [receiveBuffers]unix.RawSockaddrInet6
	controls [receiveBuffers][controlSize]byte
	next     int // of the received groups, the first one that was not handed out
	received int
	last     *endpoint
	read     func(fd uintptr) bool
	failure  syscall.Errno
}

// receive implements conn.ReceiveFunc.
func (r *receiving) receive(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
	if r.next == r.received {
		if err := r.wait(); err != nil {
			return 0, err
		}
	}
	count := 0
	for ; r.next < r.received; r.next++ {
		group := r.buffer[r.next*receiveSize:][:r.headers[r.next].length]
		segment, source := parseControl(r.controls[r.next][:r.headers[r.next].header.Controllen])
		if segment <= 0 || segment > len(group) {
			segment = max(len(group), 1)
		}
		// What does not fit is handed out by the next call. A group of more than a batch cannot be handed out at once;
		// the kernel's limit is 64 datagrams.
		if pieces := (len(group) + segment - 1) / segment; pieces > len(bufs)-count && count > 0 {
			return count, nil
		}
		from := r.endpoint(&r.names[r.next], source)
		for start := 0; start < len(group) && count < len(bufs); start += segment {
			datagram := group[start:min(start+segment, len(group))]
			if bufs[count] == nil {
				bufs[count] = datagram[:len(datagram):len(datagram)]
			} else if copy(bufs[count], datagram) < len(datagram) {
				continue // larger than any packet of WireGuard
			}
			sizes[count], endpoints[count] = len(datagram), from
			count++
		}
	}
	return count, nil
}

// wait receives at least one group.
func (r *receiving) wait() error {
	if r.buffer == nil {
		r.buffer = make([]byte, receiveBuffers*receiveSize)
		r.read = r.readNow
		for i := range r.headers {
			r.iovecs[i].Base = &r.buffer[i*receiveSize]
			r.iovecs[i].SetLen(receiveSize)
		}
	}
	for i := range r.headers {
		header := &r.headers[i].header
		header.Name, header.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
		header.Iov = &r.iovecs[i]
		header.SetIovlen(1)
		header.Control = &r.controls[i][0]
		header.SetControllen(controlSize)
	}
	if err := r.socket.raw.Read(r.read); err != nil {
		return err
	}
	if r.failure != 0 {
		return &net.OpError{Op: "read", Net: "udp", Err: r.failure}
	}
	return nil
}

// readNow returns false if there is nothing to receive yet.
func (r *receiving) readNow(fd uintptr) bool {
	for {
		// The call does not block: the scheduler need not prepare for that.
		count, _, errno := unix.RawSyscall6(
			unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.headers)), receiveBuffers, unix.MSG_DONTWAIT, 0, 0)
		r.next, r.received, r.failure = 0, 0, errno
		switch errno {
		case 0:
			r.received = int(count)
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			return true
		}
	}
}

// endpoint returns where a group came from. It allocates only if that is not where the last one came from.
func (r *receiving) endpoint(name *unix.RawSockaddrInet6, source local) conn.Endpoint {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
	var address netip.Addr
	if r.socket.six {
		address = netip.AddrFrom16(name.Addr)
		if name.Scope_id != 0 {
			address = address.WithZone(strconv.Itoa(int(name.Scope_id)))
		}
	} else {
		address = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
	}
	remote := netip.AddrPortFrom(address, port)
	if last := r.last; last != nil && last.remote == remote {
		if at := last.local.Load(); at != nil && *at == source {
			return last
		}
	}
	r.last = &endpoint{remote: remote}
	if source.address.IsValid() {
		at := source
		r.last.local.Store(&at)
	}
	return r.last
}

// parseControl returns the size of a group's datagrams, 0 if it is a single one, and where on this machine it arrived.
func parseControl(control []byte) (segment int, arrived local) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return segment, arrived
		}
		switch {
		case header.Level == unix.SOL_UDP && header.Type == unix.UDP_GRO && len(data) >= 2:
			segment = int(binary.NativeEndian.Uint16(data))
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			arrived = local{netip.AddrFrom4(info.Spec_dst), uint32(info.Ifindex)}
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			arrived = local{netip.AddrFrom16(info.Addr), info.Ifindex}
		}
		control = rest
	}
	return segment, arrived
}

// sending is the memory for one call of Send.
type sending struct {
	headers  [conn.IdealBatchSize]mmsghdr
	counts   [conn.IdealBatchSize]int
	iovecs   [conn.IdealBatchSize]unix.Iovec
	name     unix.RawSockaddrInet6
	controls [conn.IdealBatchSize][sendControlSize]byte

	pending []mmsghdr
	write   func(fd uintptr) bool
	written int
	failure syscall.Errno
}

// Send implements conn.Bind.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	target, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mutex.RLock()
	opened := b.sockets[0]
	if target.remote.Addr().Is6() {
		opened = b.sockets[1]
	}
	b.mutex.RUnlock()
	if opened == nil {
		return syscall.EAFNOSUPPORT
	}
	s := b.scratch.Get().(*sending)
	defer b.scratch.Put(s)
	for len(packets) > 0 {
		batch := packets[:min(len(packets), conn.IdealBatchSize)]
		packets = packets[len(batch):]
		source := target.local.Load()
		err := s.send(opened, batch, target.remote, source)
		if err != nil && source != nil {
			// This machine may have lost the address: the kernel chooses. What comes back over the new path is kept for
			// the next packets. A packet that was sent twice is dropped by the peer.
			err = s.send(opened, batch, target.remote, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sending) send(opened *socket, packets [][]byte, remote netip.AddrPort, source *local) error {
	length := setName(&s.name, remote)
	segments := opened.segments.Load()
	messages := s.group(packets, segments, length, source)
	done, sent := 0, 0
	for done < messages {
		count, err := s.writeSome(opened, s.headers[done:messages])
		if err != nil {
			if segments && s.counts[done] > 1 && (err == unix.EIO || err == unix.EINVAL || err == unix.EMSGSIZE) {
				// EIO: the network card does not compute checksums, so no group can be sent. Otherwise a single packet is
				// larger than the path's MTU: alone, it is fragmented.
				if err == unix.EIO {
					opened.segments.Store(false)
				}
				packets, segments, done = packets[sent:], false, 0
				messages, sent = s.group(packets, false, length, source), 0
				continue
			}
			return fmt.Errorf("sendmmsg to %s: %w", remote, err)
		}
		for _, packetsOf := range s.counts[done : done+count] {
			sent += packetsOf
		}
		done += count
	}
	return nil
}

// group prepares messages of one packet each, or, with segments, of packets in a row of one size, of which the last may
// be shorter. It returns their number.
func (s *sending) group(packets [][]byte, segments bool, nameLength uint32, source *local) int {
	messages := 0
	for first := 0; first < len(packets); messages++ {
		size, total, end := len(packets[first]), len(packets[first]), first+1
		for segments && end < len(packets) && end-first < segmentsAtOnce && len(packets[end]) <= size &&
			len(packets[end-1]) == size && total+len(packets[end]) <= payloadAtOnce {
			total += len(packets[end])
			end++
		}
		for i := first; i < end; i++ {
			s.iovecs[i].Base = unsafe.SliceData(packets[i])
			s.iovecs[i].SetLen(len(packets[i]))
		}
		header := &s.headers[messages].header
		header.Name, header.Namelen = (*byte)(unsafe.Pointer(&s.name)), nameLength
		header.Iov = &s.iovecs[first]
		header.SetIovlen(end - first)
		control := appendSource(s.controls[messages][:0], source)
		if end-first > 1 {
			control = appendControl(control, unix.SOL_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(size)))
		}
		header.Control = nil
		if len(control) > 0 {
			header.Control = &s.controls[messages][0]
		}
		header.SetControllen(len(control))
		s.counts[messages] = end - first
		first = end
	}
	return messages
}

// writeSome sends at least one message, and returns how many; it waits while the socket's buffer is full.
func (s *sending) writeSome(opened *socket, messages []mmsghdr) (int, error) {
	s.pending = messages
	if err := opened.raw.Write(s.write); err != nil {
		return 0, err
	}
	if s.failure != 0 {
		return 0, s.failure
	}
	return s.written, nil
}

// writeNow returns false if the socket's buffer is full.
func (s *sending) writeNow(fd uintptr) bool {
	for {
		// The call does not block: the scheduler need not prepare for that.
		count, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.pending))),
			uintptr(len(s.pending)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			s.written, s.failure = int(count), errno
			return errno != unix.EAGAIN
		}
	}
}

// setName writes the address to which is sent, and returns its length.
func setName(name *unix.RawSockaddrInet6, remote netip.AddrPort) uint32 {
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], remote.Port())
	if address := remote.Addr(); address.Is6() {
		*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: binary.NativeEndian.Uint16(port[:]), Addr: address.As16()}
		name.Scope_id = scopeOf(address.Zone())
		return unix.SizeofSockaddrInet6
	}
	four := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
	*four = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: binary.NativeEndian.Uint16(port[:]), Addr: remote.Addr().As4()}
	return unix.SizeofSockaddrInet4
}

// scopeOf returns the index of the interface that a link-local address belongs to; a zone is its number or its name.
func scopeOf(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if number, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(number)
	}
	if found, err := net.InterfaceByName(strings.TrimSpace(zone)); err == nil {
		return uint32(found.Index)
	}
	return 0
}

// appendSource adds from where on this machine to send.
func appendSource(control []byte, source *local) []byte {
	switch {
	case source == nil:
		return control
	case source.address.Is4():
		info := unix.Inet4Pktinfo{Ifindex: int32(source.index), Spec_dst: source.address.As4()}
		return appendControl(control, unix.IPPROTO_IP, unix.IP_PKTINFO,
			(*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
	default:
		info := unix.Inet6Pktinfo{Addr: source.address.As16(), Ifindex: source.index}
		return appendControl(control, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO,
			(*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
	}
}

func appendControl(control []byte, level, kind int32, data []byte) []byte {
	start := len(control)
	control = control[:start+unix.CmsgSpace(len(data))]
	clear(control[start:])
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[start]))
	header.Level, header.Type = level, kind
	header.SetLen(unix.CmsgLen(len(data)))
	copy(control[start+unix.CmsgLen(0):], data)
	return control
}
