package publickey

import (
	"crypto/ed25519"
	"math/big"
)

// The prime of Curve25519, 2^255 - 19, and d of its Edwards form (RFC 8032, section 5.1).
var (
	one      = big.NewInt(1)
	prime    = new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	minusOne = new(big.Int).Sub(prime, one)
	edwardsD = new(big.Int).Mod(new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), prime)), prime)
)

// checkEd25519 refuses what is no point of the curve, or not in a point's one encoding; and the eight points of small order,
// under which anyone can make signatures that verify. ed25519.Verify does not look for these: it trusts the key.
//
// A key is checked when it is read, a million of them when a large registry is. So the point is not computed: of the curve
// -x² + y² = 1 + d x² y² only whether there is an x for the y of the key.
func checkEd25519(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize {
		return errEncoding
	}
	var bigEndian [ed25519.PublicKeySize]byte
	for i, b := range key {
		bigEndian[len(bigEndian)-1-i] = b
	}
	bigEndian[0] &= 0x7f // the sign of x
	y := new(big.Int).SetBytes(bigEndian[:])
	if y.Cmp(prime) >= 0 {
		return errPoint
	}
	y2 := new(big.Int).Mul(y, y)
	y2.Mod(y2, prime)
	u, v := new(big.Int).Sub(y2, one), new(big.Int).Mul(edwardsD, y2)
	v.Add(v, one)
	// x² = u / v, which is a square if and only if u v is.
	product := new(big.Int).Mul(u, v)
	if product.Mod(product, prime); product.Sign() != 0 && big.Jacobi(product, prime) != 1 {
		return errPoint
	}
	// The points of order 1, 2 and 4 have y = 1, -1 and 0. Doubling one of order 8 gives y = 0: d y⁴ + 2 y² - 1 = 0.
	order8 := v.Mul(edwardsD, y2)
	order8.Add(order8, big.NewInt(2))
	order8.Mul(order8, y2)
	order8.Sub(order8, one)
	order8.Mod(order8, prime)
	if y.Sign() == 0 || y.Cmp(one) == 0 || y.Cmp(minusOne) == 0 || order8.Sign() == 0 {
		return errOrder
	}
	return nil
}
