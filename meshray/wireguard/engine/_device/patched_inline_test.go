package device

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// These tests run on both data paths, except those of the inline path's functions.

func numbered(count int) [][]byte {
	packets := make([][]byte, count)
	for i := range packets {
		packets[i] = make([]byte, 64)
		packets[i][0] = 0x45
		binary.BigEndian.PutUint16(packets[i][2:], 64)
		copy(packets[i][12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		binary.BigEndian.PutUint32(packets[i][60:], uint32(i))
	}
	return packets
}

func numberOf(packet []byte) int { return int(binary.BigEndian.Uint32(packet[60:])) }

func TestReorderedAndRepeatedPackets(t *testing.T) {
	sender, receiver := newPair(t, 1420, true)
	const count = 2000
	var datagrams []datagram
	for at := 0; at < count; at += 100 {
		sender.tun.batches <- numbered(count)[at : at+100]
		for range 100 {
			datagrams = append(datagrams, datagram{take(t, sender.bind.sent).content, somewhere})
		}
	}
	rand.New(rand.NewSource(1)).Shuffle(count, func(i, j int) { datagrams[i], datagrams[j] = datagrams[j], datagrams[i] })
	for range 2 {
		for at := 0; at < count; at += 50 {
			receiver.bind.incoming <- datagrams[at : at+50]
		}
	}
	seen := map[int]bool{}
	for range count {
		seen[numberOf(take(t, receiver.tun.written))] = true
	}
	if len(seen) != count {
		t.Fatalf("%d of %d packets came once", len(seen), count)
	}
	time.Sleep(50 * time.Millisecond)
	if extra := len(receiver.tun.written); extra != 0 {
		t.Fatalf("%d packets came twice", extra)
	}
}

func TestForgedPacketsChangeNothing(t *testing.T) {
	sender, receiver := newPair(t, 1420, true)
	sender.tun.batches <- numbered(3)
	var good []datagram
	for range 3 {
		good = append(good, datagram{take(t, sender.bind.sent).content, somewhere})
	}
	forged := datagram{bytes.Clone(good[1].content), elsewhere}
	forged.content[40] ^= 1
	receiver.bind.incoming <- []datagram{good[0], forged, good[2]}
	for _, want := range []int{0, 2} {
		if got := numberOf(take(t, receiver.tun.written)); got != want {
			t.Fatalf("packet %d came instead of %d", got, want)
		}
	}
	receiver.peer.endpoint.Lock()
	defer receiver.peer.endpoint.Unlock()
	if at := receiver.peer.endpoint.val.DstToString(); at != somewhere.String() {
		t.Fatalf("a forged packet moved the endpoint to %s", at)
	}
}

func TestPeerRoams(t *testing.T) {
	sender, receiver := newPair(t, 1420, true)
	sender.tun.batches <- numbered(2)
	first, second := take(t, sender.bind.sent).content, take(t, sender.bind.sent).content
	receiver.bind.incoming <- []datagram{{first, somewhere}}
	take(t, receiver.tun.written)
	receiver.bind.incoming <- []datagram{{second, elsewhere}}
	take(t, receiver.tun.written)
	reply := numbered(1)[0]
	copy(reply[12:], []byte{10, 0, 0, 2, 10, 0, 0, 1})
	receiver.tun.batches <- [][]byte{reply}
	if to := take(t, receiver.bind.sent).from; to != elsewhere {
		t.Fatalf("the reply went to %s", to)
	}
}

// TestRekeyUnderLoad lets the counters of sessions run out while packets are sent: handshakes follow, and packets wait
// for them.
func TestRekeyUnderLoad(t *testing.T) {
	sender, receiver := newPair(t, 1420, false)
	forward := func(from, to *node, done chan struct{}) {
		for {
			select {
			case d := <-from.bind.sent:
				to.bind.incoming <- []datagram{{d.content, somewhere}}
			case <-done:
				return
			}
		}
	}
	done := make(chan struct{})
	defer close(done)
	go forward(sender, receiver, done)
	go forward(receiver, sender, done)
	packets := numbered(1500)
	seen := map[int]bool{}
	for round := range 3 {
		if round > 0 {
			// Handshakes that follow each other faster than HandshakeInitationRate count as a flood.
			time.Sleep(3 * HandshakeInitationRate)
			sender.peer.keypairs.Current().sendNonce.Store(RejectAfterMessages - 40)
			// A handshake is not repeated within RekeyTimeout.
			sender.peer.handshake.mutex.Lock()
			sender.peer.handshake.lastSentHandshake = time.Now().Add(-RekeyTimeout - time.Second)
			sender.peer.handshake.mutex.Unlock()
		}
		for at := round * 500; at < round*500+500; at += 20 {
			sender.tun.batches <- packets[at : at+20]
		}
		for range 500 {
			seen[numberOf(take(t, receiver.tun.written))] = true
		}
	}
	if len(seen) != 1500 {
		t.Fatalf("%d of 1500 packets came", len(seen))
	}
}

func TestStagedPacketsAreBounded(t *testing.T) {
	var in inlinePeer
	for i := range 3 * inlineStagedPackets {
		in.stage([][]byte{binary.BigEndian.AppendUint32(make([]byte, MessageTransportHeaderSize), uint32(i))})
	}
	taken := in.take()
	if last := binary.BigEndian.Uint32(taken[len(taken)-1][MessageTransportHeaderSize:]); len(taken) != inlineStagedPackets ||
		last != 3*inlineStagedPackets-1 {
		t.Fatalf("%d packets wait, the last is %d", len(taken), last)
	}
	for range 100 {
		in.stage([][]byte{make([]byte, 9000)})
	}
	if in.stagedBytes > inlineStagedBytes {
		t.Fatalf("%d bytes wait", in.stagedBytes)
	}
	if in.take(); in.isStaged() || in.stagedBytes != 0 {
		t.Fatal("taken packets still wait")
	}
}

// FuzzDatagrams feeds the receive path, which sees whatever anybody sends to its port.
func FuzzDatagrams(f *testing.F) {
	sender, receiver := newPair(f, 1420, true)
	sender.tun.batches <- numbered(1)
	valid := take(f, sender.bind.sent).content
	f.Add(valid, uint16(len(valid)))
	f.Add(bytes.Repeat(valid, 3), uint16(len(valid)))
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0}, 74), uint16(MessageInitiationSize))
	f.Add(bytes.Repeat([]byte{4, 0, 0, 0, 77, 0, 0, 0}, 8), uint16(16))
	f.Add([]byte{4, 0, 0}, uint16(1))
	f.Fuzz(func(t *testing.T, content []byte, size uint16) {
		var bufs [][]byte
		var sizes []int
		var endpoints []conn.Endpoint
		content = bytes.Clone(content)
		for len(content) > 0 && len(bufs) < conn.IdealBatchSize {
			length := min(len(content), max(int(size), 1))
			bufs, sizes = append(bufs, content[:length]), append(sizes, length)
			endpoints = append(endpoints, &queueEndpoint{elsewhere})
			content = content[length:]
		}
		for _, opened := range receiver.device.openInline(bufs, sizes, endpoints, nil) {
			if packet := opened[MessageTransportOffsetContent:]; !bytes.Equal(packet, numbered(1)[0]) {
				t.Fatalf("%x was delivered", packet)
			}
		}
	})
}

// FuzzContents feeds the check of decrypted contents, which a member of the mesh can choose.
func FuzzContents(f *testing.F) {
	_, receiver := newPair(f, 1420, true)
	random := rand.New(rand.NewSource(2))
	for range 20 {
		f.Add(randomPacket(random, 1420))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 {
			return
		}
		length := receiver.peer.allowedLength(packet)
		if length > len(packet) {
			t.Fatalf("%d of %d bytes", length, len(packet))
		}
		if length > 0 && receiver.device.peerOf(packet[:length]) != nil && packet[0]>>4 != 4 && packet[0]>>4 != 6 {
			t.Fatal("a packet of no IP version passed")
		}
	})
}
