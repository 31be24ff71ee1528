package main

import (
	"encoding/binary"
	"math/bits"
)

// sum adds the Internet checksum's words (RFC 1071) of these bytes to a sum, in the byte order of this machine. The
// sum is not folded; a part before the last one has an even length.
func sum(b []byte, start uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[0:8]), 0)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[8:16]), carry)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[16:24]), carry)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[24:32]), carry)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[32:40]), carry)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[40:48]), carry)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[48:56]), carry)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b[56:64]), carry)
		start, carry = bits.Add64(start, 0, carry)
		start += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(b), 0)
		start += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		start, carry = bits.Add64(start, binary.NativeEndian.Uint64(last[:]), 0)
		start += carry
	}
	return start
}

// fold reduces a sum to 16 bits.
func fold(value uint64) uint16 {
	value = value>>32 + value&0xffffffff
	value = value>>32 + value&0xffffffff
	value = value>>16 + value&0xffff
	value = value>>16 + value&0xffff
	return uint16(value>>16 + value&0xffff)
}

// putChecksum writes the complement of a sum. It is never 0, which means "no checksum" in UDP: 0xffff is the same value.
func putChecksum(to []byte, value uint64) {
	folded := ^fold(value)
	if folded == 0 {
		folded = 0xffff
	}
	binary.NativeEndian.PutUint16(to, folded)
}

// pseudoSum is the sum of the pseudo header that TCP and UDP add to theirs: both addresses, the protocol, the length.
func pseudoSum(addresses []byte, protocol byte, length int) uint64 {
	var rest [4]byte
	rest[1] = protocol
	binary.BigEndian.PutUint16(rest[2:], uint16(length))
	return sum(rest[:], sum(addresses, 0))
}

// addressesOf returns the addresses of a packet with a whole IP header.
func addressesOf(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		return packet[8:40]
	}
	return packet[12:20]
}
