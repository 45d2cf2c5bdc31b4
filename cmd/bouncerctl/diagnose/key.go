package diagnose

import (
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

// Length says what is wrong with the length of a signature, as what follows "the signature"; "" where it is right. keyed: the
// device has a public key.
func Length(e *envelope.Envelope, keyed bool) string {
	switch n := len(e.Signature); {
	case keyed && n != publickey.SignatureLen:
		return fmt.Sprintf("has %d bytes, like an HMAC, and the device is registered with a public key, whose signatures have %d; sign with the private key", n, publickey.SignatureLen)
	case !keyed && n == publickey.SignatureLen:
		return "is as long as one of HMAC-SHA-512; use HMAC-SHA256. If it is one of a private key, register the device with the public one"
	}
	return ""
}

// KeySignature names the usual mistake that gives a signature under one of the device's public keys, with the cure; "" where
// no known mistake does.
func KeySignature(e *envelope.Envelope, keys []*publickey.Key) string {
	if len(e.Signature) != publickey.SignatureLen {
		return ""
	}
	for _, key := range keys {
		for _, canonical := range []bool{false, true} {
			text := e.AppendSigned(nil, canonical)
			switch {
			case key.Algorithm() == publickey.P256 && key.Verify(text, publickey.LowS(e.Signature)):
				return "good but for s, which is above half the order of P-256: send n - s in its place"
			case key.Algorithm() == publickey.Ed25519 && key.Verify(text, turned(e.Signature)):
				return "good but for the order of its bytes: write R and S as they are, with the least significant byte first"
			case key.Algorithm() == publickey.P256 && key.Verify(text, publickey.LowS(turned(e.Signature))):
				return "good but for the order of its bytes: write r and s with the most significant byte first"
			}
		}
	}
	return ""
}

// turned returns a signature with the bytes of each half in the other order.
func turned(signature []byte) []byte {
	t := slices.Clone(signature)
	slices.Reverse(t[:len(t)/2])
	slices.Reverse(t[len(t)/2:])
	return t
}

// isDER tells whether a signature is one of ECDSA as most libraries return it.
func isDER(signature []byte) bool {
	var rs struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(signature, &rs)
	return err == nil && len(rest) == 0
}
