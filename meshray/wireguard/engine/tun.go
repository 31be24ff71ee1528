package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	maxPacket = 1<<16 - 1
	// tunTCP is what every kernel can offload; UDP since 6.2.
	tunTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	tunUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6
	// splitRoom is the size of the memory for the segments of one read: 64 KiB of payload, and headers, padding and a
	// tag for each. Segments that do not fit are returned by the next call.
	splitRoom = 128 << 10
)

// tunDevice is an interface that was opened with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR, as a tun.Device. The kernel passes
// up to 64 KiB of one TCP or UDP flow as a single packet, in both directions: what it reads is split here, and what is
// written is joined by iovecs, without a copy.
type tunDevice struct {
	file   *os.File
	raw    syscall.RawConn
	name   string
	mtu    int
	udp    bool // the kernel takes groups of UDP datagrams
	events chan tun.Event
	close  sync.Once

	reading struct {
		sync.Mutex
		header   virtioHeader
		buffer   []byte
		split    []byte
		rest     splitter
		copied   [][]byte
		iovecs   [2]unix.Iovec
		read     func(fd uintptr) bool
		count    int
		failure  syscall.Errno
		headroom int
	}
	writing struct {
		sync.Mutex
		joiner
		iovecs  []unix.Iovec
		write   func(fd uintptr) bool
		failure syscall.Errno
	}
}

// virtioHeader is the kernel's struct virtio_net_hdr.
type virtioHeader struct {
	flags, kind                             uint8
	headerLength, size, sumStart, sumOffset uint16
}

const virtioLength = int(unsafe.Sizeof(virtioHeader{}))

// openTUN takes a descriptor over.
//
// The interface may be in another namespace, where its MTU cannot be read; WireGuard only needs it to know how far a
// packet may be padded.
func openTUN(fd, mtu int) (*tunDevice, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, request); err != nil {
		return nil, err
	}
	if request.Uint16()&unix.IFF_VNET_HDR == 0 {
		return nil, errors.New("it was opened without IFF_VNET_HDR")
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunTCP); err != nil {
		return nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	t := &tunDevice{name: request.Name(), mtu: mtu, events: make(chan tun.Event)}
	t.udp = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunTCP|tunUDP) == nil
	t.file = os.NewFile(uintptr(fd), "/dev/net/tun")
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, err
	}
	t.reading.read, t.writing.write = t.readNow, t.writeNow
	return t, nil
}

func (t *tunDevice) File() *os.File           { return t.file }
func (t *tunDevice) MTU() (int, error)        { return t.mtu, nil }
func (t *tunDevice) Name() (string, error)    { return t.name, nil }
func (t *tunDevice) Events() <-chan tun.Event { return t.events }
func (t *tunDevice) BatchSize() int           { return conn.IdealBatchSize }

func (t *tunDevice) Close() (err error) {
	t.close.Do(func() {
		close(t.events)
		err = t.file.Close()
	})
	return err
}

// Read implements tun.Device, for the parallel data path.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	r := &t.reading
	if len(r.copied) < len(bufs) {
		r.copied = make([][]byte, len(bufs))
	}
	count, err := t.ReadPackets(r.copied[:len(bufs)], 0, 0)
	for i, packet := range r.copied[:count] {
		if sizes[i] = copy(bufs[i][offset:], packet); sizes[i] < len(packet) {
			sizes[i] = 0 // larger than any packet of WireGuard
		}
	}
	return count, err
}

// ReadPackets sets packets to what it read, each with headroom in front and capacity for tailroom behind. They are
// valid until the next call.
func (t *tunDevice) ReadPackets(packets [][]byte, headroom, tailroom int) (int, error) {
	r := &t.reading
	r.Lock()
	defer r.Unlock()
	if r.rest.isEmpty() {
		count, err := t.readOne(packets, headroom, tailroom)
		if err != nil || count > 0 {
			return count, err
		}
	}
	if r.split == nil {
		r.split = make([]byte, splitRoom)
	}
	return r.rest.next(packets, r.split, headroom, tailroom), nil
}

// readOne reads one packet. It returns 0 if that has to be split.
func (t *tunDevice) readOne(packets [][]byte, headroom, tailroom int) (int, error) {
	r := &t.reading
	if size := headroom + maxPacket + tailroom; len(r.buffer) < size {
		r.buffer = make([]byte, size)
	}
	r.headroom = headroom
	if err := t.raw.Read(r.read); err != nil {
		return 0, err
	}
	if r.failure == unix.EBADFD {
		return 0, os.ErrClosed
	}
	if r.failure != 0 {
		return 0, &os.PathError{Op: "read", Path: t.name, Err: r.failure}
	}
	if r.count <= virtioLength {
		return 0, nil
	}
	whole := r.buffer[:headroom+r.count-virtioLength]
	packet := whole[headroom:]
	if r.header.kind == unix.VIRTIO_NET_HDR_GSO_NONE {
		if r.header.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 && !completeSum(packet, r.header) {
			return 0, nil
		}
		packets[0] = whole
		return 1, nil
	}
	// A packet that is not what its header says is dropped.
	r.rest, _ = newSplitter(packet, r.header)
	return 0, nil
}

func (t *tunDevice) readNow(fd uintptr) bool {
	r := &t.reading
	r.iovecs[0].Base = (*byte)(unsafe.Pointer(&r.header))
	r.iovecs[0].SetLen(virtioLength)
	r.iovecs[1].Base = &r.buffer[r.headroom]
	r.iovecs[1].SetLen(maxPacket)
	for {
		// The call does not block: the scheduler need not prepare for that.
		count, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&r.iovecs)), 2)
		if errno != unix.EINTR {
			r.count, r.failure = int(count), errno
			return errno != unix.EAGAIN
		}
	}
}

// Write implements tun.Device.
func (t *tunDevice) Write(packets [][]byte, offset int) (int, error) {
	w := &t.writing
	w.Lock()
	defer w.Unlock()
	w.join(packets, offset, t.udp)
	var failures error
	for i := range w.groups {
		w.iovecs = w.gather(&w.groups[i], w.iovecs[:0])
		if err := t.raw.Write(w.write); err != nil {
			return i, err
		}
		if w.failure == unix.EBADFD {
			return i, os.ErrClosed
		}
		if w.failure != 0 {
			failures = errors.Join(failures, &os.PathError{Op: "write", Path: t.name, Err: w.failure})
		}
	}
	return len(packets), failures
}

func (t *tunDevice) writeNow(fd uintptr) bool {
	w := &t.writing
	for {
		_, _, errno := unix.RawSyscall(
			unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(w.iovecs))), uintptr(len(w.iovecs)))
		if errno != unix.EINTR {
			w.failure = errno
			return errno != unix.EAGAIN
		}
	}
}

// completeSum computes a checksum that the kernel left to the network card.
func completeSum(packet []byte, header virtioHeader) bool {
	start, at := int(header.sumStart), int(header.sumStart)+int(header.sumOffset)
	if at+2 > len(packet) {
		return false
	}
	// The field holds the sum of the pseudo header.
	putChecksum(packet[at:], sum(packet[start:], 0))
	return true
}

// splitter is a packet of which segments are still to be made.
type splitter struct {
	packet             []byte // with the checksums of its headers set to 0
	payload            int    // where the rest of it begins
	number             int    // of the next segment
	size               int    // of a segment's payload
	network, transport int    // lengths of the headers
	six, tcp           bool
	firstSequence      uint32
	firstID            uint16
	sumAt              int
}

func (s *splitter) isEmpty() bool { return s.payload >= len(s.packet) }

// newSplitter checks a packet of the kernel.
func newSplitter(packet []byte, header virtioHeader) (splitter, error) {
	s := splitter{packet: packet, size: int(header.size), network: int(header.sumStart), six: packet[0]>>4 == 6}
	invalid := fmt.Errorf("a packet of %d bytes with the offload header %+v", len(packet), header)
	least := 20
	switch {
	case s.six:
		least = 40
	case packet[0]>>4 != 4:
		return splitter{}, invalid
	}
	switch {
	case header.kind == unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		s.transport, s.sumAt = 8, s.network+6
	case (header.kind == unix.VIRTIO_NET_HDR_GSO_TCPV4 && !s.six) || (header.kind == unix.VIRTIO_NET_HDR_GSO_TCPV6 && s.six):
		s.tcp, s.sumAt = true, s.network+16
		if s.network+20 > len(packet) {
			return splitter{}, invalid
		}
		// The kernel's length of all headers may be that of the whole first segment.
		s.transport = int(packet[s.network+12]>>4) * 4
		if s.transport < 20 {
			return splitter{}, invalid
		}
	default:
		return splitter{}, invalid
	}
	s.payload = s.network + s.transport
	if s.network < least || s.size == 0 || s.payload >= len(packet) {
		return splitter{}, invalid
	}
	if s.tcp {
		s.firstSequence = binary.BigEndian.Uint32(packet[s.network+4:])
	}
	if !s.six {
		s.firstID = binary.BigEndian.Uint16(packet[4:])
		packet[10], packet[11] = 0, 0
	}
	packet[s.sumAt], packet[s.sumAt+1] = 0, 0
	return s, nil
}

// next makes segments in memory and sets packets to them.
func (s *splitter) next(packets [][]byte, memory []byte, headroom, tailroom int) int {
	headers := s.network + s.transport
	count := 0
	for ; !s.isEmpty() && count < len(packets); count++ {
		payload := s.packet[s.payload:min(s.payload+s.size, len(s.packet))]
		length := headers + len(payload)
		room := headroom + length + tailroom
		if room > len(memory) {
			if count == 0 {
				*s = splitter{} // larger than any packet
			}
			break
		}
		packets[count] = memory[: headroom+length : room]
		out := packets[count][headroom:]
		memory = memory[room:]
		copy(out, s.packet[:headers])
		copy(out[headers:], payload)
		s.payload += len(payload)
		s.finish(out, length)
		s.number++
	}
	return count
}

// finish sets what differs between the segments.
func (s *splitter) finish(out []byte, length int) {
	if s.six {
		binary.BigEndian.PutUint16(out[4:], uint16(length-40))
	} else {
		binary.BigEndian.PutUint16(out[2:], uint16(length))
		binary.BigEndian.PutUint16(out[4:], s.firstID+uint16(s.number))
		putChecksum(out[10:], sum(out[:s.network], 0))
	}
	transport := out[s.network:]
	protocol := byte(unix.IPPROTO_UDP)
	if s.tcp {
		protocol = unix.IPPROTO_TCP
		binary.BigEndian.PutUint32(transport[4:], s.firstSequence+uint32(s.number*s.size))
		if !s.isEmpty() {
			transport[13] &^= tcpFIN | tcpPSH
		}
	} else {
		binary.BigEndian.PutUint16(transport[4:], uint16(length-s.network))
	}
	putChecksum(out[s.sumAt:], sum(transport, pseudoSum(addressesOf(out), protocol, length-s.network)))
}
