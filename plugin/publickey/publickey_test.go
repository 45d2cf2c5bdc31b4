package publickey

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/testkit"
)

func newSigner(t testing.TB, a Algorithm) *Signer {
	t.Helper()
	private := testkit.PrivateKey(t, string(a))
	s, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var both = []Algorithm{Ed25519, P256}

// TestSignatures: what is signed verifies, with that key alone, and no other text, bytes or length does.
func TestSignatures(t *testing.T) {
	for _, a := range both {
		for range 50 {
			s, other := newSigner(t, a), newSigner(t, a)
			text := []byte("sensor_0011727712000550e8400-e29b-41d4-a716-4466554400001")
			signature, err := s.Signature(text)
			if err != nil || len(signature) != SignatureLen {
				t.Fatalf("%s: %v, %d bytes", a, err, len(signature))
			}
			k := s.Public()
			if k.Algorithm() != a || !k.Verify(text, signature) {
				t.Fatalf("%s: a good signature does not verify", k.Algorithm())
			}
			if other.Public().Verify(text, signature) || k.Verify(append(text, ' '), signature) || new(Key).Verify(text, signature) {
				t.Fatalf("%s: another key or text, or no key, verifies", a)
			}
			for n := range SignatureLen {
				if k.Verify(text, signature[:n]) {
					t.Fatalf("%s: %d bytes verify", a, n)
				}
				changed := bytes.Clone(signature)
				changed[n] ^= 1
				if k.Verify(text, changed) {
					t.Fatalf("%s: a signature with byte %d changed verifies", a, n)
				}
			}
			if k.Verify(text, append(bytes.Clone(signature), 0)) {
				t.Fatalf("%s: 65 bytes verify", a)
			}
		}
	}
}

// TestOneFormOfASignature: what can be made of a signature without the key does not verify, nor do numbers out of range.
func TestOneFormOfASignature(t *testing.T) {
	text := []byte("text")
	n := elliptic.P256().Params().N
	s := newSigner(t, P256)
	good, err := s.Signature(text)
	if err != nil {
		t.Fatal(err)
	}
	put := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	goodR, goodS := new(big.Int).SetBytes(good[:32]), new(big.Int).SetBytes(good[32:])
	for name, signature := range map[string][]byte{
		"s above half the order": put(goodR, new(big.Int).Sub(n, goodS)),
		"r is 0":                 put(new(big.Int), goodS),
		"s is 0":                 put(goodR, new(big.Int)),
		"r is n":                 put(n, goodS),
		"r and s are 0":          make([]byte, 64),
		"all ones":               bytes.Repeat([]byte{0xff}, 64),
	} {
		if s.Public().Verify(text, signature) {
			t.Errorf("%s: verifies", name)
		}
	}

	ed := newSigner(t, Ed25519)
	if good, err = ed.Signature(text); err != nil {
		t.Fatal(err)
	}
	order, _ := new(big.Int).SetString("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed", 16)
	bigEndian := bytes.Clone(good[32:])
	reverse(bigEndian)
	larger := new(big.Int).Add(new(big.Int).SetBytes(bigEndian), order).FillBytes(make([]byte, 32))
	reverse(larger)
	if ed.Public().Verify(text, append(bytes.Clone(good[:32]), larger...)) {
		t.Error("S + the order of the group verifies")
	}
}

func reverse(b []byte) {
	for i := range len(b) / 2 {
		b[i], b[len(b)-1-i] = b[len(b)-1-i], b[i]
	}
}

// TestSmallOrder: the points of small order are refused, under which a signature of zeros verifies, and what is no point.
func TestSmallOrder(t *testing.T) {
	for _, encoded := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	} {
		key, err := hex.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Of(ed25519.PublicKey(key)); err != errOrder {
			t.Errorf("%s: %v", encoded, err)
		}
	}
	for _, encoded := range []string{
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // 0, written as the prime
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // 1
		"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"0200000000000000000000000000000000000000000000000000000000000000", // no x
	} {
		key, _ := hex.DecodeString(encoded)
		if _, err := Of(ed25519.PublicKey(key)); err != errPoint {
			t.Errorf("%s: %v", encoded, err)
		}
	}
	for range 200 { // every real key is taken
		newSigner(t, Ed25519)
	}
}

func encode(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestForms: a key is the same however it is read, and is read in one form only.
func TestForms(t *testing.T) {
	for _, a := range both {
		s := newSigner(t, a)
		der := encode(t, s.private.Public())
		file := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		k, err := ParsePEM(file)
		if err != nil || !k.Equal(s.Public()) || k.Fingerprint() != FingerprintOf(der) {
			t.Fatalf("%s: %v", a, err)
		}
		if k.Text() != base64.StdEncoding.EncodeToString(der) || !strings.Contains(strings.ReplaceAll(string(file), "\n", ""), k.Text()) {
			t.Errorf("%s: %s", a, k.Text())
		}
		if again, err := ParseText(k.Text()); err != nil || !again.Equal(k) {
			t.Errorf("%s: %v", a, err)
		}
		if _, err := ParseText("?"); err == nil {
			t.Error("what is not base64 is taken")
		}
		if _, err := Parse(append(der, 0)); err == nil {
			t.Errorf("%s: something behind the key is taken", a)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(s.private)
		if err != nil {
			t.Fatal(err)
		}
		private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
		again, err := ReadSigner(private)
		if err != nil || !again.Public().Equal(k) {
			t.Errorf("%s: the private key: %v", a, err)
		}
		for text, want := range map[string]string{
			string(private):             "private key",
			string(file) + string(file): "more than one",
			"ssh-ed25519 AAAA":          "not a public key",
			"":                          "not a public key",
			"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n": "CERTIFICATE",
		} {
			if _, err := ParsePEM([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %.40q: %v", a, text, err)
			}
		}
	}
}

// TestOtherKeys: keys of other types are refused with what is taken.
func TestOtherKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]any{"P-384": p384.Public(), "RSA": large.Public(), "key agreement": x25519.PublicKey()} {
		_, err := Parse(encode(t, key))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "a device signs with Ed25519 or with ECDSA on P-256") {
			t.Errorf("%s: %v", want, err)
		}
	}
	key := newSigner(t, P256).private.Public().(*ecdsa.PublicKey)
	der := encode(t, key)
	der[len(der)-1] ^= 1
	if _, err := Parse(der); err == nil {
		t.Error("a point that is not on the curve is taken")
	}
	infinity, err := hex.DecodeString("3019" + "301306072a8648ce3d020106082a8648ce3d030107" + "03020000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(infinity); err == nil {
		t.Error("the point at infinity is taken")
	}
}

// BenchmarkVerify has the cost of one verification, and what it allocates.
func BenchmarkVerify(b *testing.B) {
	for _, a := range both {
		b.Run(string(a), func(b *testing.B) {
			s, text := newSigner(b, a), bytes.Repeat([]byte("x"), 120)
			signature, err := s.Signature(text)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if !s.Public().Verify(text, signature) {
					b.Fatal("not verified")
				}
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for _, a := range both {
		b.Run(string(a), func(b *testing.B) {
			der, err := base64.StdEncoding.DecodeString(newSigner(b, a).Public().Text())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := Parse(der); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
