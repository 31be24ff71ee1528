package main

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// naiveSum is the Internet checksum as RFC 1071 describes it.
func naiveSum(parts ...[]byte) uint16 {
	var total uint32
	for _, part := range parts {
		for i := range part {
			word := uint32(part[i])
			if i%2 == 0 {
				word <<= 8
			}
			total += word
			total = total>>16 + total&0xffff
		}
	}
	return uint16(total>>16 + total&0xffff)
}

// isIntact reports whether the checksums of a TCP or UDP packet are right.
func isIntact(packet []byte) bool {
	network, addresses, protocol := 20, packet[12:20], packet[9]
	if packet[0]>>4 == 6 {
		network, addresses, protocol = 40, packet[8:40], packet[6]
	} else if naiveSum(packet[:20]) != 0xffff {
		return false
	}
	pseudo := binary.BigEndian.AppendUint16([]byte{0, protocol}, uint16(len(packet)-network))
	return naiveSum(addresses, pseudo, packet[network:]) == 0xffff
}

// form is what a test packet looks like.
type form struct {
	six, tcp bool
	flags    byte
	options  int
	sequence uint32
	port     uint16
}

func build(f form, payload []byte) []byte {
	network, transport := 20, 8
	if f.six {
		network = 40
	}
	if f.tcp {
		transport = 20 + f.options
	}
	packet := make([]byte, network+transport, network+transport+len(payload))
	protocol := byte(unix.IPPROTO_UDP)
	t := packet[network:]
	binary.BigEndian.PutUint16(t, f.port)
	binary.BigEndian.PutUint16(t[2:], 5201)
	if f.tcp {
		protocol = unix.IPPROTO_TCP
		binary.BigEndian.PutUint32(t[4:], f.sequence)
		t[12], t[13] = byte(transport/4)<<4, f.flags
		for i := 20; i < transport; i++ {
			t[i] = 1
		}
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(8+len(payload)))
	}
	packet = append(packet, payload...)
	if f.six {
		packet[0], packet[6], packet[7], packet[23], packet[39] = 0x60, protocol, 64, 1, 2
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
	} else {
		packet[0], packet[6], packet[8], packet[9] = 0x45, 0x40, 64, protocol
		copy(packet[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		putChecksum(packet[10:], sum(packet[:20], 0))
	}
	at := network + 6
	if f.tcp {
		at = network + 16
	}
	putChecksum(packet[at:], sum(packet[network:], pseudoSum(addressesOf(packet), protocol, len(packet)-network)))
	return packet
}

func randomBytes(random *rand.Rand, length int) []byte {
	content := make([]byte, length)
	random.Read(content)
	return content
}

func TestChecksumOfEveryLength(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for length := range 700 {
		content := randomBytes(random, length)
		var got [2]byte
		binary.NativeEndian.PutUint16(got[:], fold(sum(content, 0)))
		if binary.BigEndian.Uint16(got[:]) != naiveSum(content) {
			t.Fatalf("%x != %x for %d bytes", got, naiveSum(content), length)
		}
	}
	if full := bytes.Repeat([]byte{0xff}, 4096); fold(sum(full, 1<<63)) == 0 {
		t.Fatal("a carry was lost")
	}
}

// header returns the offload header with which the kernel would pass a packet.
func header(f form, size int) virtioHeader {
	h := virtioHeader{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, size: uint16(size), sumStart: 20, sumOffset: 6}
	if f.six {
		h.sumStart = 40
	}
	switch {
	case !f.tcp:
		h.kind = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	case f.six:
		h.kind, h.sumOffset = unix.VIRTIO_NET_HDR_GSO_TCPV6, 16
	default:
		h.kind, h.sumOffset = unix.VIRTIO_NET_HDR_GSO_TCPV4, 16
	}
	return h
}

// gathered returns the bytes that the kernel would read.
func gathered(iovecs []unix.Iovec) (all []byte) {
	for _, iovec := range iovecs {
		all = append(all, unsafe.Slice(iovec.Base, iovec.Len)...)
	}
	return all
}

// TestSplitAndJoin splits large packets and joins the segments again: each segment is intact, and joined they are the
// packet.
func TestSplitAndJoin(t *testing.T) {
	random := rand.New(rand.NewSource(2))
	memory := make([]byte, splitRoom)
	for range 2000 {
		f := form{six: random.Intn(2) == 0, tcp: random.Intn(2) == 0, flags: tcpACK, sequence: random.Uint32(), port: 99}
		f.options = 4 * random.Intn(11)
		if random.Intn(2) == 0 {
			f.flags |= tcpPSH
		}
		size := 1 + random.Intn(1400)
		if random.Intn(10) == 0 {
			size = 1 + random.Intn(8900)
		}
		payload := randomBytes(random, 1+random.Intn(min(size*64, 65000)))
		whole := build(f, payload)
		splitting, err := newSplitter(bytes.Clone(whole), header(f, size))
		if err != nil {
			t.Fatal(err)
		}
		var packets [][]byte
		for !splitting.isEmpty() {
			batch := make([][]byte, 1+random.Intn(128))
			count := splitting.next(batch, memory, 16, 32)
			for _, packet := range batch[:count] {
				if cap(packet)-len(packet) != 32 {
					t.Fatalf("%d bytes of tailroom", cap(packet)-len(packet))
				}
				packets = append(packets, bytes.Clone(packet))
			}
		}
		var joined []byte
		for i, packet := range packets {
			if !isIntact(packet[16:]) {
				t.Fatalf("segment %d of %+v, %d bytes, is not intact", i, f, size)
			}
			joined = append(joined, packet[len(packet)-min(size, len(payload)-i*size):]...)
		}
		if !bytes.Equal(joined, payload) {
			t.Fatal("the payload changed")
		}
		if len(packets) > 128 {
			continue
		}
		var j joiner
		j.join(packets, 16, true)
		if len(j.groups) != 1 {
			t.Fatalf("%d segments of %+v became %d packets", len(packets), f, len(j.groups))
		}
		got := gathered(j.gather(&j.groups[0], nil))[virtioLength:]
		if len(packets) > 1 && !completeSum(got, j.groups[0].header) || !isIntact(got) || !bytes.Equal(got, whole) {
			t.Fatalf("joined is not what was split: %+v\n%x\n%x", f, got[:60], whole[:60])
		}
	}
}

// TestJoinKeepsTheOrderOfEachFlow joins packets of several flows, some lost or of other sizes: the bytes of each flow
// stay the same, in the same order.
func TestJoinKeepsTheOrderOfEachFlow(t *testing.T) {
	random := rand.New(rand.NewSource(3))
	for range 2000 {
		sequences := make([]uint32, 1+random.Intn(30))
		want, got := map[uint16][]byte{}, map[uint16][]byte{}
		var packets [][]byte
		for range 1 + random.Intn(128) {
			flow := random.Intn(len(sequences))
			f := form{six: flow%2 == 0, tcp: flow%3 != 0, flags: tcpACK, port: uint16(flow), sequence: sequences[flow]}
			size := []int{500, 500, 500, 500, 499, 501, 0}[random.Intn(7)]
			f.flags |= []byte{0, 0, 0, 0, 0, tcpPSH, tcpFIN, 2}[random.Intn(8)]
			sequences[flow] += uint32(size)
			if random.Intn(20) == 0 {
				sequences[flow] += 500
			}
			payload := randomBytes(random, size)
			want[f.port] = append(want[f.port], payload...)
			packets = append(packets, append(make([]byte, 16), build(f, payload)...))
		}
		var j joiner
		j.join(packets, 16, true)
		for i := range j.groups {
			g := &j.groups[i]
			packet := gathered(j.gather(g, nil))[virtioLength:]
			if len(packet) != g.length {
				t.Fatalf("a group of %d bytes has %d", g.length, len(packet))
			}
			if g.count > 1 && !completeSum(packet, g.header) || !isIntact(packet) {
				t.Fatalf("a group of %d packets is not intact", g.count)
			}
			port := binary.BigEndian.Uint16(packet[g.network:])
			got[port] = append(got[port], packet[g.headers:]...)
		}
		for port := range want {
			if !bytes.Equal(want[port], got[port]) {
				t.Fatalf("flow %d changed", port)
			}
		}
	}
}

// FuzzSplit feeds what the kernel passes, with any header.
func FuzzSplit(f *testing.F) {
	for _, form := range []form{{}, {six: true}, {tcp: true, flags: tcpACK}, {six: true, tcp: true, flags: tcpACK}} {
		h := header(form, 500)
		f.Add(build(form, make([]byte, 1700)), h.kind, h.size, h.sumStart, h.sumOffset)
	}
	f.Fuzz(func(t *testing.T, packet []byte, kind uint8, size, start, offset uint16) {
		if len(packet) == 0 || len(packet) > maxPacket {
			return
		}
		h := virtioHeader{kind: kind, size: size, sumStart: start, sumOffset: offset}
		completeSum(bytes.Clone(packet), h)
		splitting, err := newSplitter(bytes.Clone(packet), h)
		if err != nil {
			return
		}
		memory, total := make([]byte, splitRoom), 0
		for !splitting.isEmpty() {
			batch := make([][]byte, 128)
			count := splitting.next(batch, memory, 16, 32)
			for _, one := range batch[:count] {
				total += len(one) - 16 - splitting.network - splitting.transport
			}
			if count == 0 {
				return
			}
		}
		if want := len(packet) - splitting.network - splitting.transport; total != want {
			t.Fatalf("%d of %d bytes of payload", total, want)
		}
	})
}

// FuzzJoin feeds decrypted packets, which a member of the mesh can choose.
func FuzzJoin(f *testing.F) {
	for _, form := range []form{{}, {six: true}, {tcp: true, flags: tcpACK}, {six: true, tcp: true, flags: tcpACK}} {
		packet := build(form, make([]byte, 100))
		form.sequence = 100
		f.Add(append(packet, build(form, make([]byte, 100))...), uint16(len(packet)))
	}
	f.Fuzz(func(t *testing.T, content []byte, size uint16) {
		var packets [][]byte
		for content = bytes.Clone(content); len(content) > 0 && len(packets) < 128; {
			length := min(len(content), max(int(size), 1))
			packets = append(packets, append(make([]byte, 16), content[:length]...))
			content = content[length:]
		}
		var j joiner
		j.join(packets, 16, true)
		count := 0
		for i := range j.groups {
			g := &j.groups[i]
			count += g.count
			if packet := gathered(j.gather(g, nil)); len(packet) != virtioLength+g.length || g.length > maxPacket {
				t.Fatalf("a group of %d bytes has %d", g.length, len(packet))
			}
		}
		if count != len(packets) {
			t.Fatalf("%d of %d packets", count, len(packets))
		}
	})
}
