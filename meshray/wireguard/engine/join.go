package main

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	// lookBack is the number of groups among which that of a packet's flow is searched. A flow whose group is further
	// back starts another one, so its packets keep their order.
	lookBack = 16
)

// joiner finds packets in a row of one flow, which the kernel takes as one packet (generic receive offload).
//
// It joins what the kernel's own GRO joins: same addresses, ports, acknowledgement, options, TTL and class; following
// sequence numbers; equal sizes, of which the last may be smaller. It does not verify the checksums that it replaces:
// WireGuard's tag already proves that the packet is the one that the peer encrypted.
type joiner struct {
	packets [][]byte
	offset  int
	groups  []group
	next    []int // the packet that follows this one in its group
}

// group is a packet for the kernel.
type group struct {
	header      virtioHeader
	first, last int // indexes of packets
	count       int
	length      int // of the joined packet
	size        int // of the payload of each packet but the last
	network     int // length of the IP header
	headers     int // length of all headers
	sequence    uint32
	protocol    byte // 0: of no known flow
	six, open   bool // open: more may be appended
}

// join divides these packets into groups.
func (j *joiner) join(packets [][]byte, offset int, udp bool) {
	j.packets, j.offset, j.groups = packets, offset, j.groups[:0]
	for len(j.next) < len(packets) {
		j.next = append(j.next, 0)
	}
	for i, packet := range packets {
		current := describe(packet[offset:], udp)
		current.first, current.last = i, i
		if current.protocol == 0 || !j.append(i, &current) {
			j.groups = append(j.groups, current)
		}
	}
	for i := range j.groups {
		if j.groups[i].count > 1 {
			j.finish(&j.groups[i])
		}
	}
}

// describe returns the group of a single packet. It is open if packets can follow.
func describe(packet []byte, udp bool) group {
	g := group{count: 1, length: len(packet)}
	if len(packet) < 28 || len(packet) > maxPacket {
		return g
	}
	var protocol byte
	switch packet[0] >> 4 {
	case 4:
		// Neither options nor fragments.
		isWhole := packet[6]&0x3f == 0 && packet[7] == 0
		if packet[0]&0x0f != 5 || !isWhole || int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
			return g
		}
		g.network, protocol = 20, packet[9]
	case 6:
		if len(packet) < 48 || int(binary.BigEndian.Uint16(packet[4:])) != len(packet)-40 {
			return g
		}
		g.network, protocol, g.six = 40, packet[6], true
	default:
		return g
	}
	transport := packet[g.network:]
	switch {
	case protocol == unix.IPPROTO_TCP && len(transport) >= 20:
		length := int(transport[12]>>4) * 4
		if length < 20 || length > len(transport) {
			return g
		}
		g.headers = g.network + length
		g.sequence = binary.BigEndian.Uint32(transport[4:])
		g.open = transport[13] == tcpACK
	case protocol == unix.IPPROTO_UDP && udp:
		// Without a checksum the joined packet would get one. A length that is not the packet's cannot be split again.
		if binary.BigEndian.Uint16(transport[6:]) == 0 || int(binary.BigEndian.Uint16(transport[4:])) != len(transport) {
			return g
		}
		g.headers = g.network + 8
		g.open = true
	default:
		return g
	}
	g.protocol = protocol
	g.size = len(packet) - g.headers
	g.open = g.open && g.size > 0
	return g
}

// append adds a packet to the group of its flow, if that is open and fits. It closes the group otherwise: packets of a
// flow keep their order.
func (j *joiner) append(i int, current *group) bool {
	packet := j.packets[i][j.offset:]
	for at := len(j.groups) - 1; at >= max(0, len(j.groups)-lookBack); at-- {
		g := &j.groups[at]
		if g.protocol != current.protocol || g.six != current.six {
			continue
		}
		head := j.packets[g.first][j.offset:]
		if !isSameFlow(head, packet, g.network) {
			continue
		}
		if !g.open || !canFollow(g, current, head, packet) {
			g.open = false
			return false
		}
		j.next[g.last], g.last = i, i
		g.count++
		g.length += current.size
		g.sequence += uint32(g.size)
		if current.protocol == unix.IPPROTO_TCP && packet[g.network+13]&tcpPSH != 0 {
			head[g.network+13] |= tcpPSH
			g.open = false
		}
		g.open = g.open && current.size == g.size
		return true
	}
	return false
}

// isSameFlow compares addresses and ports.
func isSameFlow(a, b []byte, network int) bool {
	if network == 20 {
		return binary.NativeEndian.Uint64(a[12:]) == binary.NativeEndian.Uint64(b[12:]) &&
			binary.NativeEndian.Uint32(a[20:]) == binary.NativeEndian.Uint32(b[20:])
	}
	return bytes.Equal(a[8:44], b[8:44])
}

func canFollow(g, current *group, head, packet []byte) bool {
	if current.headers != g.headers || current.size == 0 || current.size > g.size || g.length+current.size > maxPacket {
		return false
	}
	if g.six {
		// Traffic class, flow label and hop limit.
		if binary.NativeEndian.Uint32(head) != binary.NativeEndian.Uint32(packet) || head[7] != packet[7] {
			return false
		}
	} else if head[1] != packet[1] || head[6] != packet[6] || head[8] != packet[8] {
		return false
	}
	if current.protocol == unix.IPPROTO_UDP {
		return true
	}
	a, b := head[g.network:g.headers], packet[g.network:g.headers]
	isData := b[13] == tcpACK || b[13] == tcpACK|tcpPSH
	return isData && current.sequence == g.sequence+uint32(g.size) &&
		binary.NativeEndian.Uint32(a[8:]) == binary.NativeEndian.Uint32(b[8:]) && bytes.Equal(a[20:], b[20:])
}

// finish writes the headers of a joined packet into its first one. The kernel computes the checksum if it needs one.
func (j *joiner) finish(g *group) {
	head := j.packets[g.first][j.offset:]
	g.header = virtioHeader{
		flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, headerLength: uint16(g.headers), size: uint16(g.size),
		sumStart: uint16(g.network), sumOffset: 16,
	}
	if g.six {
		g.header.kind = unix.VIRTIO_NET_HDR_GSO_TCPV6
		binary.BigEndian.PutUint16(head[4:], uint16(g.length-g.network))
	} else {
		g.header.kind = unix.VIRTIO_NET_HDR_GSO_TCPV4
		binary.BigEndian.PutUint16(head[2:], uint16(g.length))
		head[10], head[11] = 0, 0
		putChecksum(head[10:], sum(head[:g.network], 0))
	}
	if g.protocol == unix.IPPROTO_UDP {
		g.header.kind, g.header.sumOffset = unix.VIRTIO_NET_HDR_GSO_UDP_L4, 6
		binary.BigEndian.PutUint16(head[g.network+4:], uint16(g.length-g.network))
	}
	at := g.network + int(g.header.sumOffset)
	binary.NativeEndian.PutUint16(head[at:], fold(pseudoSum(addressesOf(head), g.protocol, g.length-g.network)))
}

// gather returns where a group is in memory: its offload header, its first packet, the payloads of the others.
func (j *joiner) gather(g *group, iovecs []unix.Iovec) []unix.Iovec {
	add := func(base *byte, length int) {
		iovec := unix.Iovec{Base: base}
		iovec.SetLen(length)
		iovecs = append(iovecs, iovec)
	}
	add((*byte)(unsafe.Pointer(&g.header)), virtioLength)
	head := j.packets[g.first][j.offset:]
	add(unsafe.SliceData(head), len(head))
	for at := g.first; at != g.last; {
		at = j.next[at]
		payload := j.packets[at][j.offset+g.headers:]
		add(unsafe.SliceData(payload), len(payload))
	}
	return iovecs
}
