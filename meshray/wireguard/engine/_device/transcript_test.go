package device

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// This file uses only what the library has without meshray's patch, so that the same test runs on both.

const transcriptPackets = 10_000

// queueTUN hands out batches of packets and keeps what is written.
type queueTUN struct {
	batches chan [][]byte
	written chan []byte
	closed  chan struct{}
	mtu     int
}

func newQueueTUN(mtu int) *queueTUN {
	return &queueTUN{make(chan [][]byte, 1024), make(chan []byte, 1<<16), make(chan struct{}), mtu}
}

func (t *queueTUN) File() *os.File           { return nil }
func (t *queueTUN) MTU() (int, error)        { return t.mtu, nil }
func (t *queueTUN) Name() (string, error)    { return "queue0", nil }
func (t *queueTUN) Events() <-chan tun.Event { return nil }
func (t *queueTUN) BatchSize() int           { return conn.IdealBatchSize }
func (t *queueTUN) Close() error             { close(t.closed); return nil }

func (t *queueTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case batch := <-t.batches:
		for i, packet := range batch {
			sizes[i] = copy(bufs[i][offset:], packet)
		}
		return len(batch), nil
	}
}

func (t *queueTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, buf := range bufs {
		t.written <- bytes.Clone(buf[offset:])
	}
	return len(bufs), nil
}

// queueEndpoint is the address of a queueBind's peer.
type queueEndpoint struct{ netip.AddrPort }

func (e *queueEndpoint) ClearSrc()           {}
func (e *queueEndpoint) SrcToString() string { return "" }
func (e *queueEndpoint) DstToString() string { return e.AddrPort.String() }
func (e *queueEndpoint) DstToBytes() []byte  { b, _ := e.AddrPort.MarshalBinary(); return b }
func (e *queueEndpoint) DstIP() netip.Addr   { return e.AddrPort.Addr() }
func (e *queueEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }

type datagram struct {
	content []byte
	from    netip.AddrPort
}

// queueBind keeps what is sent and hands out what a test puts into it.
type queueBind struct {
	sent     chan datagram
	incoming chan []datagram
	closed   chan struct{}
}

func newQueueBind() *queueBind {
	return &queueBind{sent: make(chan datagram, 1<<16), incoming: make(chan []datagram, 1024)}
}

func (b *queueBind) BatchSize() int       { return conn.IdealBatchSize }
func (b *queueBind) SetMark(uint32) error { return nil }

func (b *queueBind) Close() error {
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *queueBind) ParseEndpoint(text string) (conn.Endpoint, error) {
	address, err := netip.ParseAddrPort(text)
	return &queueEndpoint{address}, err
}

func (b *queueBind) Send(bufs [][]byte, to conn.Endpoint) error {
	for _, buf := range bufs {
		b.sent <- datagram{bytes.Clone(buf), to.(*queueEndpoint).AddrPort}
	}
	return nil
}

func (b *queueBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	closed := make(chan struct{})
	b.closed = closed
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case batch := <-b.incoming:
			for i, d := range batch {
				sizes[i] = copy(bufs[i], d.content)
				endpoints[i] = &queueEndpoint{d.from}
			}
			return len(batch), nil
		}
	}}, 51820, nil
}

// node is a device with one peer.
type node struct {
	tun    *queueTUN
	bind   *queueBind
	device *Device
	peer   *Peer
}

var (
	somewhere = netip.MustParseAddrPort("192.0.2.1:51820")
	elsewhere = netip.MustParseAddrPort("[2001:db8::1]:40000")
)

func newNode(tb testing.TB, mtu int, own, other NoisePrivateKey, allowed ...string) *node {
	tb.Helper()
	n := &node{tun: newQueueTUN(mtu), bind: newQueueBind()}
	n.device = NewDevice(n.tun, n.bind, NewLogger(LogLevelError, ""))
	tb.Cleanup(n.device.Close)
	public := other.publicKey()
	text := "private_key=" + hex.EncodeToString(own[:]) + "\npublic_key=" + hex.EncodeToString(public[:]) +
		"\nendpoint=" + somewhere.String() + "\n"
	for _, prefix := range allowed {
		text += "allowed_ip=" + prefix + "\n"
	}
	if err := n.device.IpcSet(text); err != nil {
		tb.Fatal(err)
	}
	if err := n.device.Up(); err != nil {
		tb.Fatal(err)
	}
	n.peer = n.device.LookupPeer(public)
	return n
}

// newPair returns a sender and a receiver. With a session, both have fixed keys, so that what they send can be
// compared with what another build sends.
func newPair(tb testing.TB, mtu int, session bool) (sender, receiver *node) {
	tb.Helper()
	keys := [2]NoisePrivateKey{{1: 1}, {1: 2}}
	for i := range keys {
		keys[i].clamp()
	}
	sender = newNode(tb, mtu, keys[0], keys[1], "10.0.0.2/32", "fd00::2/128")
	receiver = newNode(tb, mtu, keys[1], keys[0], "10.0.0.1/32", "fd00::1/128")
	if session {
		for i, n := range []*node{sender, receiver} {
			addSession(tb, n, byte(i), byte(1-i))
		}
	}
	return sender, receiver
}

func addSession(tb testing.TB, n *node, send, receive byte) *Keypair {
	tb.Helper()
	keypair := &Keypair{created: time.Now(), localIndex: 77, remoteIndex: 77}
	keypair.send, _ = chacha20poly1305.New(bytes.Repeat([]byte{send + 1}, 32))
	keypair.receive, _ = chacha20poly1305.New(bytes.Repeat([]byte{receive + 1}, 32))
	n.device.indexTable.Lock()
	n.device.indexTable.table[77] = IndexTableEntry{peer: n.peer, keypair: keypair}
	n.device.indexTable.Unlock()
	n.peer.keypairs.Lock()
	n.peer.keypairs.current = keypair
	n.peer.keypairs.Unlock()
	return keypair
}

// randomPacket returns an IP packet from the sender to the receiver with random content; one in 50 is of another
// address and does not pass.
func randomPacket(random *rand.Rand, mtu int) []byte {
	six := random.Intn(2) == 0
	header := 20
	if six {
		header = 40
	}
	packet := make([]byte, header+random.Intn(mtu-header+1))
	random.Read(packet)
	last := byte(1)
	if random.Intn(50) == 0 {
		last = 9
	}
	if six {
		packet[0] = 0x60 | packet[0]&0x0f
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
		copy(packet[8:], []byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last})
		copy(packet[24:], []byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2})
	} else {
		packet[0] = 0x45
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		copy(packet[12:], []byte{10, 0, 0, last, 10, 0, 0, 2})
	}
	return packet
}

// TestTranscript sends random packets and writes every datagram and every delivered packet to a file, whose content
// must not depend on the data path, nor on the patch.
func TestTranscript(t *testing.T) {
	var transcript bytes.Buffer
	record := func(kind byte, content []byte) {
		transcript.WriteByte(kind)
		transcript.WriteString(strconv.Itoa(len(content)))
		transcript.Write(content)
	}
	random := rand.New(rand.NewSource(20260522))
	mtus := []int{1280, 1420, 1500, 4000, 9000}
	for _, mtu := range mtus {
		sender, receiver := newPair(t, mtu, true)
		delivered := 0
		for count := 0; count < transcriptPackets/len(mtus); {
			batch := make([][]byte, 1+random.Intn(conn.IdealBatchSize))
			pass := 0
			for i := range batch {
				batch[i] = randomPacket(random, mtu)
				if source := batch[i][12:20]; batch[i][0]>>4 == 6 && batch[i][23] == 1 || batch[i][0]>>4 == 4 && source[3] == 1 {
					pass++
				}
			}
			sender.tun.batches <- batch
			datagrams := make([]datagram, len(batch))
			for i := range datagrams {
				datagrams[i] = datagram{take(t, sender.bind.sent).content, somewhere}
				record('d', datagrams[i].content)
			}
			receiver.bind.incoming <- datagrams
			for range pass {
				record('p', take(t, receiver.tun.written))
			}
			count += len(batch)
			delivered += pass
		}
		if delivered < transcriptPackets/len(mtus)*9/10 {
			t.Fatalf("only %d packets passed", delivered)
		}
	}
	if path := os.Getenv("MESHRAY_TRANSCRIPT"); path != "" {
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		writer := bufio.NewWriter(file)
		defer writer.Flush()
		_, _ = transcript.WriteTo(writer)
	}
}

func take[T any](tb testing.TB, from chan T) T {
	tb.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(20 * time.Second):
		tb.Fatal("nothing came in 20 s")
		panic("unreachable")
	}
}
