package publickey

import (
	"bytes"
	"crypto/ed25519"

	"filippo.io/edwards25519"
)

// checkEd25519 refuses what is no point of the curve, or not in a point's one encoding; and the eight points of small order,
// under which anyone can make signatures that verify. ed25519.Verify does not look for these: it trusts the key.
//
// A key is checked when it is read, a million of them when a large registry is.
func checkEd25519(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize {
		return errEncoding
	}
	if !belowPrime(key) {
		return errPoint
	}
	point, err := new(edwards25519.Point).SetBytes(key)
	if err != nil {
		return errPoint
	}
	if point.MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return errOrder
	}
	return nil
}

// belowPrime reports whether y is below 2^255 - 19, which edwards25519 does not ask for. The two points whose x is 0, and
// would have a second encoding with the other sign of it, are of small order.
func belowPrime(key ed25519.PublicKey) bool {
	last := key[len(key)-1] & 0x7f // without the sign of x
	return last != 0x7f || key[0] < 0xed || !bytes.Equal(key[1:len(key)-1], allOnes)
}

var allOnes = bytes.Repeat([]byte{0xff}, ed25519.PublicKeySize-2)
