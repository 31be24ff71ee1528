package device

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// The inline data path: the goroutine that read packets also encrypts and sends them, or decrypts and delivers them.
//
// The parallel path hands each batch to an encryption worker and then to the peer's sender, and in the other direction
// to a decryption worker and then to the peer's receiver. That pays where cores are idle. Where they are not, each
// hand-over costs a wake-up, and each batch in a queue holds memory that has left the cache. Here nothing waits in a
// queue, so the buffers are those of the readers, and a peer needs neither goroutines nor channels.
//
// The rules that keep it free of deadlocks:
//
//   - A receiving goroutine never sends. Whoever replaces the sockets holds device.net and waits for that goroutine,
//     which would wait for device.net. What it must send, rarely, leaves in a goroutine started for it.
//   - inlinePeer.sending is not held while a handshake starts: a handshake needs device.staticIdentity, and whoever
//     holds that may be waiting in Peer.Stop for inlinePeer.sending.

// defaultInline is the data path of NewDevice; the tests set it.
var defaultInline = false

const (
	// inlineTailroom is the room behind a packet for its padding and its tag, in bytes.
	inlineTailroom = PaddingMultiple + chacha20poly1305.Overhead
	// The limits of what waits for a peer's handshake. The kernel's WireGuard keeps 128 packets.
	inlineStagedPackets = 1024
	inlineStagedBytes   = 256 << 10
)

// packetReader is a tun.Device that places packets in memory by itself, with room in front of and behind each. They are
// valid until the next call.
type packetReader interface {
	ReadPackets(packets [][]byte, headroom, tailroom int) (int, error)
}

// inPlaceReceiver is a conn.Bind whose receive functions set each buffer to the place of a datagram, if the buffer is
// nil. The datagrams are valid until the next call.
type inPlaceReceiver interface {
	ReceivesInPlace() bool
}

// inlinePeer is what a peer needs for the inline path.
type inlinePeer struct {
	// sending keeps the order of counters on the wire, and stops Peer.Stop until nothing is being sent.
	sending sync.Mutex
	// receiving protects the replay filters, because IPv4 and IPv6 are received by two goroutines.
	receiving sync.Mutex

	stagedMutex sync.Mutex
	staged      [][]byte // copies of packets that wait for a session, with headroom and tailroom
	stagedBytes int
}

// stage keeps copies of these packets, which have headroom; the oldest ones make room.
func (in *inlinePeer) stage(packets [][]byte) {
	in.stagedMutex.Lock()
	defer in.stagedMutex.Unlock()
	for _, packet := range packets {
		own := make([]byte, len(packet), len(packet)+inlineTailroom)
		copy(own, packet)
		in.staged = append(in.staged, own)
		in.stagedBytes += len(own)
	}
	drop := 0
	for len(in.staged)-drop > inlineStagedPackets || (in.stagedBytes > inlineStagedBytes && len(in.staged)-drop > 1) {
		in.stagedBytes -= len(in.staged[drop])
		in.staged[drop] = nil
		drop++
	}
	in.staged = in.staged[drop:]
}

// take returns the staged packets and forgets them.
func (in *inlinePeer) take() [][]byte {
	in.stagedMutex.Lock()
	defer in.stagedMutex.Unlock()
	taken := in.staged
	in.staged, in.stagedBytes = nil, 0
	return taken
}

// giveBack puts packets back in front of those that were staged since they were taken.
func (in *inlinePeer) giveBack(packets [][]byte) {
	in.stagedMutex.Lock()
	defer in.stagedMutex.Unlock()
	for _, packet := range packets {
		in.stagedBytes += len(packet)
	}
	in.staged = append(packets, in.staged...)
}

func (in *inlinePeer) isStaged() bool {
	in.stagedMutex.Lock()
	defer in.stagedMutex.Unlock()
	return len(in.staged) > 0
}

// usableSession returns the keypair with which packets can be sent now, or nil.
func (peer *Peer) usableSession() *Keypair {
	keypair := peer.keypairs.Current()
	if keypair == nil || keypair.sendNonce.Load() >= RejectAfterMessages || time.Since(keypair.created) >= RejectAfterTime {
		return nil
	}
	return keypair
}

// sendInline encrypts these packets where they are and sends them, or keeps copies of them if there is no session.
// Each packet has a header's room in front, and capacity for padding and tag behind.
func (peer *Peer) sendInline(packets [][]byte) {
	if !peer.isRunning.Load() {
		return
	}
	in := &peer.inline
	in.sending.Lock()
	keypair := peer.usableSession()
	if keypair == nil || in.isStaged() || !peer.device.isUp() {
		in.stage(packets)
		in.sending.Unlock()
		peer.sendStagedInline()
		return
	}
	unsent := peer.sealAndSend(keypair, packets)
	if len(unsent) > 0 {
		in.stage(unsent)
	}
	in.sending.Unlock()
	if len(unsent) > 0 {
		peer.sendStagedInline()
		return
	}
	peer.keepKeyFreshSending()
}

// sendStagedInline sends what waits for a session, or starts a handshake if there is none.
func (peer *Peer) sendStagedInline() {
	in := &peer.inline
	for in.isStaged() && peer.device.isUp() && peer.isRunning.Load() {
		in.sending.Lock()
		keypair := peer.usableSession()
		if keypair == nil {
			in.sending.Unlock()
			peer.SendHandshakeInitiation(false)
			return
		}
		packets := in.take()
		for len(packets) > 0 {
			batch := packets[:min(len(packets), conn.IdealBatchSize)]
			unsent := peer.sealAndSend(keypair, batch)
			packets = packets[len(batch):]
			if len(unsent) > 0 {
				// The counter is used up: these wait for the next session.
				in.giveBack(append(append([][]byte(nil), unsent...), packets...))
				break
			}
		}
		in.sending.Unlock()
		peer.keepKeyFreshSending()
	}
}

func (peer *Peer) sendKeepaliveInline() {
	if !peer.inline.isStaged() && peer.isRunning.Load() {
		peer.inline.stage([][]byte{make([]byte, MessageTransportHeaderSize)})
		peer.device.log.Verbosef("%v - Sending keepalive packet", peer)
	}
	peer.sendStagedInline()
}

// sealAndSend encrypts and sends, and returns the packets for which the session has no counter left. The caller holds
// inlinePeer.sending.
func (peer *Peer) sealAndSend(keypair *Keypair, packets [][]byte) (unsent [][]byte) {
	device := peer.device
	mtu := int(device.tun.mtu.Load())
	dataSent := false
	var nonce [chacha20poly1305.NonceSize]byte
	for i, packet := range packets {
		counter := keypair.sendNonce.Add(1) - 1
		if counter >= RejectAfterMessages {
			keypair.sendNonce.Store(RejectAfterMessages)
			packets, unsent = packets[:i], packets[i:]
			break
		}
		size := len(packet) - MessageTransportHeaderSize
		dataSent = dataSent || size > 0
		padded := packet[:len(packet)+calculatePaddingSize(size, mtu)]
		clear(padded[len(packet):])
		header := padded[:MessageTransportHeaderSize]
		binary.LittleEndian.PutUint32(header[0:4], MessageTransportType)
		binary.LittleEndian.PutUint32(header[4:8], keypair.remoteIndex)
		binary.LittleEndian.PutUint64(header[8:16], counter)
		binary.LittleEndian.PutUint64(nonce[4:], counter)
		packets[i] = keypair.send.Seal(header, nonce[:], padded[MessageTransportHeaderSize:], nil)
	}
	if len(packets) == 0 {
		return unsent
	}
	peer.timersAnyAuthenticatedPacketTraversal()
	peer.timersAnyAuthenticatedPacketSent()
	err := peer.SendBuffers(packets)
	if dataSent {
		peer.timersDataSent()
	}
	var withoutOffload conn.ErrUDPGSODisabled
	if errors.As(err, &withoutOffload) {
		device.log.Verbosef(err.Error())
		err = withoutOffload.RetryErr
	}
	if err != nil {
		device.log.Errorf("%v - Failed to send data packets: %v", peer, err)
	}
	return unsent
}

// readInline is RoutineReadFromTUN of the inline path.
func (device *Device) readInline() {
	defer func() {
		device.log.Verbosef("Routine: TUN reader - stopped")
		device.state.stopping.Done()
		device.queue.encryption.wg.Done()
	}()
	device.log.Verbosef("Routine: TUN reader - started")

	reader, ok := device.tun.device.(packetReader)
	if !ok {
		reader = newCopyingReader(device.tun.device)
	}
	size := max(device.BatchSize(), conn.IdealBatchSize)
	packets, peers := make([][]byte, size), make([]*Peer, size)
	batch := make([][]byte, 0, size)
	for {
		count, err := reader.ReadPackets(packets, MessageTransportHeaderSize, inlineTailroom)
		for i, packet := range packets[:count] {
			peers[i] = device.peerOf(packet[MessageTransportHeaderSize:])
		}
		for i := range count {
			peer := peers[i]
			if peer == nil {
				continue
			}
			batch = batch[:0]
			for j := i; j < count; j++ {
				if peers[j] == peer {
					batch, peers[j] = append(batch, packets[j]), nil
				}
			}
			peer.sendInline(batch)
		}
		if errors.Is(err, tun.ErrTooManySegments) {
			device.log.Verbosef("Dropped some packets from multi-segment read: %v", err)
		} else if err != nil {
			if !device.isClosed() {
				if !errors.Is(err, os.ErrClosed) {
					device.log.Errorf("Failed to read packet from TUN device: %v", err)
				}
				go device.Close()
			}
			return
		}
	}
}

// peerOf returns the peer to which an IP packet goes, or nil.
func (device *Device) peerOf(packet []byte) *Peer {
	switch {
	case len(packet) >= ipv4.HeaderLen && packet[0]>>4 == 4:
		return device.allowedips.Lookup(packet[IPv4offsetDst : IPv4offsetDst+net.IPv4len])
	case len(packet) >= ipv6.HeaderLen && packet[0]>>4 == 6:
		return device.allowedips.Lookup(packet[IPv6offsetDst : IPv6offsetDst+net.IPv6len])
	}
	return nil
}

// copyingReader makes a packetReader of any tun.Device.
type copyingReader struct {
	device tun.Device
	bufs   [][]byte
	sizes  []int
}

func newCopyingReader(device tun.Device) *copyingReader {
	r := &copyingReader{device, make([][]byte, device.BatchSize()), make([]int, device.BatchSize())}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, MaxMessageSize)
	}
	return r
}

func (r *copyingReader) ReadPackets(packets [][]byte, headroom, tailroom int) (int, error) {
	count, err := r.device.Read(r.bufs, r.sizes, headroom)
	kept := 0
	for i := range count {
		if end := headroom + r.sizes[i]; r.sizes[i] > 0 && end+tailroom <= len(r.bufs[i]) {
			packets[kept] = r.bufs[i][:end]
			kept++
		}
	}
	return kept, err
}

// receiveInline is RoutineReceiveIncoming of the inline path.
func (device *Device) receiveInline(batchSize int, receive conn.ReceiveFunc) {
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	endpoints, opened := make([]conn.Endpoint, batchSize), make([][]byte, 0, batchSize)
	inPlace, ok := device.net.bind.(inPlaceReceiver)
	isInPlace := ok && inPlace.ReceivesInPlace()
	if !isInPlace {
		for i := range bufs {
			bufs[i] = make([]byte, MaxMessageSize)
		}
	}
	failures := 0
	for {
		if isInPlace {
			clear(bufs)
		}
		count, err := receive(bufs, sizes, endpoints)
		if err != nil {
			var network net.Error
			isFinal := errors.Is(err, net.ErrClosed) || (errors.As(err, &network) && !network.Temporary())
			if failures++; isFinal || failures > 10 {
				return
			}
			device.log.Verbosef("Failed to receive packet: %v", err)
			time.Sleep(time.Second / 3)
			continue
		}
		failures = 0
		opened = device.openInline(bufs[:count], sizes, endpoints, opened[:0])
		if len(opened) > 0 {
			if _, err := device.tun.device.Write(opened, MessageTransportOffsetContent); err != nil && !device.isClosed() {
				device.log.Errorf("Failed to write packets to TUN device: %v", err)
			}
		}
	}
}

// openInline handles datagrams. It appends to opened those that hold a packet for the interface, decrypted: the packet
// follows the transport header.
func (device *Device) openInline(bufs [][]byte, sizes []int, endpoints []conn.Endpoint, opened [][]byte) [][]byte {
	now := time.Now()
	for i := 0; i < len(bufs); {
		datagram := bufs[i][:sizes[i]]
		if len(datagram) < MinMessageSize {
			i++
			continue
		}
		if kind := binary.LittleEndian.Uint32(datagram); kind != MessageTransportType {
			device.queueHandshake(kind, datagram, endpoints[i])
			i++
			continue
		}
		// The packets of one session in a row are handled together.
		receiver := binary.LittleEndian.Uint32(datagram[MessageTransportOffsetReceiver:])
		end := i + 1
		for end < len(bufs) && sizes[end] >= MinMessageSize &&
			binary.LittleEndian.Uint32(bufs[end]) == MessageTransportType &&
			binary.LittleEndian.Uint32(bufs[end][MessageTransportOffsetReceiver:]) == receiver {
			end++
		}
		entry := device.indexTable.Lookup(receiver)
		if keypair := entry.keypair; keypair != nil && entry.peer.isRunning.Load() &&
			!keypair.created.Add(RejectAfterTime).Before(now) {
			opened = entry.peer.openRun(keypair, bufs[i:end], sizes[i:end], endpoints[i:end], opened)
		}
		i = end
	}
	return opened
}

// queueHandshake gives a copy to the handshake workers. What is no handshake message is dropped.
func (device *Device) queueHandshake(kind uint32, datagram []byte, endpoint conn.Endpoint) {
	switch {
	case kind == MessageInitiationType && len(datagram) == MessageInitiationSize:
	case kind == MessageResponseType && len(datagram) == MessageResponseSize:
	case kind == MessageCookieReplyType && len(datagram) == MessageCookieReplySize:
	default:
		return
	}
	element := QueueHandshakeElement{msgType: kind, packet: append([]byte(nil), datagram...), endpoint: endpoint}
	select {
	case device.queue.handshake.c <- element:
	default:
	}
}

// openRun decrypts transport messages of one session, checks them, and appends those for the interface to opened.
func (peer *Peer) openRun(
	keypair *Keypair, bufs [][]byte, sizes []int, endpoints []conn.Endpoint, opened [][]byte,
) [][]byte {
	var nonce [chacha20poly1305.NonceSize]byte
	var endpoint conn.Endpoint
	received, hasData, isConfirmed := uint64(0), false, false
	peer.inline.receiving.Lock()
	for i, buf := range bufs {
		message := buf[:sizes[i]]
		counter := binary.LittleEndian.Uint64(message[MessageTransportOffsetCounter:])
		binary.LittleEndian.PutUint64(nonce[4:], counter)
		content := message[MessageTransportOffsetContent:]
		packet, err := keypair.receive.Open(content[:0], nonce[:], content, nil)
		if err != nil || !keypair.replayFilter.ValidateCounter(counter, RejectAfterMessages) {
			continue
		}
		endpoint = endpoints[i]
		isConfirmed = peer.ReceivedWithKeypair(keypair) || isConfirmed
		received += uint64(len(packet) + MinMessageSize)
		if len(packet) == 0 {
			peer.device.log.Verbosef("%v - Receiving keepalive packet", peer)
			continue
		}
		hasData = true
		if length := peer.allowedLength(packet); length > 0 {
			end := MessageTransportOffsetContent + length
			opened = append(opened, message[:end:end])
		}
	}
	peer.inline.receiving.Unlock()
	if endpoint == nil {
		return opened
	}
	peer.rxBytes.Add(received)
	peer.SetEndpointFromPacket(endpoint)
	if isConfirmed {
		peer.timersHandshakeComplete()
		go peer.SendStagedPackets()
	}
	peer.keepKeyFreshReceiving()
	peer.timersAnyAuthenticatedPacketTraversal()
	peer.timersAnyAuthenticatedPacketReceived()
	if hasData {
		peer.timersDataReceived()
	}
	return opened
}

// allowedLength returns the length of the IP packet in a decrypted, padded content, or 0 if it is malformed or if its
// source does not belong to this peer.
func (peer *Peer) allowedLength(packet []byte) int {
	var length int
	var source []byte
	switch packet[0] >> 4 {
	case 4:
		if len(packet) < ipv4.HeaderLen {
			return 0
		}
		length = int(binary.BigEndian.Uint16(packet[IPv4offsetTotalLength:]))
		if length < ipv4.HeaderLen {
			return 0
		}
		source = packet[IPv4offsetSrc : IPv4offsetSrc+net.IPv4len]
	case 6:
		if len(packet) < ipv6.HeaderLen {
			return 0
		}
		length = int(binary.BigEndian.Uint16(packet[IPv6offsetPayloadLength:])) + ipv6.HeaderLen
		source = packet[IPv6offsetSrc : IPv6offsetSrc+net.IPv6len]
	default:
		peer.device.log.Verbosef("Packet with invalid IP version from %v", peer)
		return 0
	}
	if length > len(packet) {
		return 0
	}
	if peer.device.allowedips.Lookup(source) != peer {
		peer.device.log.Verbosef("IP packet with disallowed source address from %v", peer)
		return 0
	}
	return length
}

// handshakeWorkers returns how many goroutines compute handshakes.
func (device *Device) handshakeWorkers() int {
	if device.inline {
		return min(runtime.GOMAXPROCS(0), 2)
	}
	return runtime.NumCPU()
}
