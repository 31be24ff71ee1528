package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

func open(t *testing.T, inPlace bool) (*bind, []conn.ReceiveFunc, uint16) {
	t.Helper()
	b := newBind(inPlace)
	receivers, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b, receivers, port
}

// receiveAll returns the next count datagrams, and the endpoint of the last.
func receiveAll(t *testing.T, receive conn.ReceiveFunc, count int, inPlace bool) (got [][]byte, from conn.Endpoint) {
	t.Helper()
	bufs, sizes := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
	endpoints := make([]conn.Endpoint, conn.IdealBatchSize)
	for len(got) < count {
		for i := range bufs {
			bufs[i] = nil
			if !inPlace {
				bufs[i] = make([]byte, 9216)
			}
		}
		n, err := receive(bufs, sizes, endpoints)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			got, from = append(got, bytes.Clone(bufs[i][:sizes[i]])), endpoints[i]
		}
	}
	return got, from
}

// TestDatagramsArriveAsSent sends batches of equal and of different sizes, which the kernel groups or not.
func TestDatagramsArriveAsSent(t *testing.T) {
	for _, inPlace := range []bool{true, false} {
		for family, address := range []string{"127.0.0.1", "[::1]"} {
			t.Run(fmt.Sprint(address, inPlace), func(t *testing.T) {
				random := rand.New(rand.NewSource(int64(family)))
				sender, fromReceiver, senderPort := open(t, inPlace)
				receiver, receivers, port := open(t, inPlace)
				to, err := sender.ParseEndpoint(fmt.Sprintf("%s:%d", address, port))
				if err != nil {
					t.Fatal(err)
				}
				for round := range 60 {
					sent := make([][]byte, 1+random.Intn(conn.IdealBatchSize))
					size := []int{32, 148, 1280, 1452, 9000}[round%5]
					for i := range sent {
						length := size
						if random.Intn(8) == 0 {
							length = 1 + random.Intn(size)
						}
						sent[i] = randomBytes(random, length)
					}
					if err := sender.Send(sent, to); err != nil {
						t.Fatal(err)
					}
					got, from := receiveAll(t, receivers[family], len(sent), inPlace)
					for i := range sent {
						if !bytes.Equal(got[i], sent[i]) {
							t.Fatalf("round %d: datagram %d of %d changed", round, i, len(sent))
						}
					}
					if want := fmt.Sprintf("%s:%d", address, senderPort); from.DstToString() != want {
						t.Fatalf("it came from %s, not %s", from.DstToString(), want)
					}
					if !from.SrcIP().IsLoopback() {
						t.Fatalf("it arrived at %s", from.SrcIP())
					}
					if err := receiver.Send([][]byte{{1, 2, 3}}, from); err != nil {
						t.Fatal(err)
					}
					if back, _ := receiveAll(t, fromReceiver[family], 1, inPlace); !bytes.Equal(back[0], []byte{1, 2, 3}) {
						t.Fatalf("the answer was %x", back[0])
					}
				}
			})
		}
	}
}

func TestBothFamiliesHaveOnePort(t *testing.T) {
	b, receivers, port := open(t, true)
	if len(receivers) != 2 || port == 0 {
		t.Fatalf("%d sockets, port %d", len(receivers), port)
	}
	for family, opened := range b.sockets {
		if got := opened.conn.LocalAddr().(*net.UDPAddr).Port; got != int(port) {
			t.Errorf("socket %d has port %d, not %d", family, got, port)
		}
	}
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opened twice: %v", err)
	}
	if _, _, err := newBind(true).Open(port); err == nil {
		t.Error("a port in use was opened")
	}
}

func TestCloseEndsReceiving(t *testing.T) {
	b, receivers, _ := open(t, true)
	ended := make(chan error, len(receivers))
	for _, receive := range receivers {
		go func() {
			_, err := receive(make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128))
			ended <- err
		}()
	}
	time.Sleep(20 * time.Millisecond)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range receivers {
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("it still receives")
		}
	}
}

// TestLostSourceAddress: a machine's address is gone, and packets leave by another one.
func TestLostSourceAddress(t *testing.T) {
	sender, _, _ := open(t, true)
	_, receivers, port := open(t, true)
	to := &endpoint{remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
	to.local.Store(&local{address: netip.MustParseAddr("198.51.100.9")})
	if err := sender.Send([][]byte{{1}, {2}}, to); err != nil {
		t.Fatal(err)
	}
	if got, _ := receiveAll(t, receivers[0], 2, true); len(got) != 2 {
		t.Fatal("a packet was lost")
	}
}

func TestMappedAddressesAreIPv4(t *testing.T) {
	to, err := newBind(true).ParseEndpoint("[::ffff:192.0.2.7]:9")
	if err != nil || to.DstToString() != "192.0.2.7:9" {
		t.Fatal(to, err)
	}
}

// FuzzControl feeds the control messages of received datagrams.
func FuzzControl(f *testing.F) {
	source := &local{address: netip.MustParseAddr("192.0.2.1"), index: 3}
	f.Add(appendSource(make([]byte, 0, sendControlSize), source))
	source = &local{address: netip.MustParseAddr("2001:db8::1"), index: 3}
	f.Add(appendControl(appendSource(make([]byte, 0, 2*sendControlSize), source), 17, 104, []byte{1, 2}))
	f.Fuzz(func(t *testing.T, control []byte) {
		if segment, _ := parseControl(control); segment < 0 || segment > maxPacket {
			t.Fatal(segment)
		}
	})
}
