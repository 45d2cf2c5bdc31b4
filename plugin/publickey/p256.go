package publickey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"math/big"
)

// halfOrder is half the order of P-256's group, rounded down: the greatest s that is accepted.
var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1).FillBytes(make([]byte, SignatureLen/2))

// lowS reports whether s, 32 bytes, is not above half the order.
func lowS(s []byte) bool { return bytes.Compare(s, halfOrder) <= 0 }

// LowS returns a signature of ECDSA with the lower one of its two s, which is the one that Verify takes. It has SignatureLen
// bytes and is not changed.
func LowS(signature []byte) []byte {
	low := bytes.Clone(signature)
	if s := low[SignatureLen/2:]; !lowS(s) {
		n := elliptic.P256().Params().N
		new(big.Int).Mod(new(big.Int).Sub(n, new(big.Int).SetBytes(s)), n).FillBytes(s)
	}
	return low
}

// verifyP256 verifies r || s. That r and s are in [1, n-1] is ecdsa's to check.
func verifyP256(key *ecdsa.PublicKey, sum, signature []byte) bool {
	r, s := signature[:SignatureLen/2], signature[SignatureLen/2:]
	if !lowS(s) {
		return false
	}
	var room [2 + 2*(3+SignatureLen/2)]byte
	der := appendInteger(appendInteger(room[:2], r), s)
	der[0], der[1] = 0x30, byte(len(der)-2) // SEQUENCE
	return ecdsa.VerifyASN1(key, sum, der)
}

// appendInteger appends an INTEGER of DER: the shortest form of a number that is not negative.
func appendInteger(der, number []byte) []byte {
	for len(number) > 1 && number[0] == 0 {
		number = number[1:]
	}
	if number[0] >= 0x80 {
		return append(append(der, 2, byte(len(number)+1), 0), number...)
	}
	return append(append(der, 2, byte(len(number))), number...)
}
