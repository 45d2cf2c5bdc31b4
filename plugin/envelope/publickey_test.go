package envelope

import (
	"encoding/json"
	"os"
	"testing"

	"mosquitto-bouncer/plugin/publickey"
)

// keyVectors is testdata/envelope-v1-keys.json.
type keyVectors struct {
	vectors
	PublicKey  map[string]string `json:"public_key"`
	PrivateKey map[string]string `json:"private_key"`
}

func loadKeyVectors(t testing.TB) (v keyVectors) {
	t.Helper()
	text, err := os.ReadFile("testdata/envelope-v1-keys.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Vectors) < 30 {
		t.Fatalf("only %d vectors", len(v.Vectors))
	}
	return v
}

// verifierOf returns the verifier of a device of the vectors.
func (v *keyVectors) verifierOf(t testing.TB, id string) Verifier {
	t.Helper()
	if secret, found := v.Secret[id]; found {
		return NewVerifier([]byte(secret))
	}
	key, err := publickey.ParsePEM([]byte(v.PublicKey[id]))
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	return NewKeyVerifier(key)
}

// TestKeyVectors holds parsing and signature against the vectors of devices with public keys.
func TestKeyVectors(t *testing.T) {
	all := loadKeyVectors(t)
	d := new(Decoder)
	for _, v := range all.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			e, err := d.Decode([]byte(v.Message))
			if malformed := v.Expect == "malformed"; malformed != (err != nil) {
				t.Fatalf("expected %s, Decode says %v", v.Expect, err)
			}
			if err != nil {
				return
			}
			if signed := all.verifierOf(t, v.TLSIdentity).Verify(e); signed != (v.Expect == "accept") {
				t.Errorf("expected %s, verified %v", v.Expect, signed)
			}
		})
	}
}

// TestKeySign: what a private key of the vectors signs, its public key verifies, in both forms of the payload; a message
// that is signed again has the same digest.
func TestKeySign(t *testing.T) {
	all := loadKeyVectors(t)
	for id, text := range all.PrivateKey {
		signer, err := publickey.ReadSigner([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		d, digests := new(Decoder), map[[32]byte]bool{}
		for range 2 {
			message, err := Sign(signer, id, 1727712000, "550e8400-e29b-41d4-a716-446655440000", []byte(`{"b": 1, "a": [ ]}`))
			if err != nil {
				t.Fatal(err)
			}
			e, err := d.Decode(message)
			if err != nil || !all.verifierOf(t, id).Verify(e) {
				t.Fatalf("%s: %v", message, err)
			}
			digests[*e.Digest()] = true
			if *e.Digest() != publickey.FingerprintOf(e.AppendSigned(nil, false)) {
				t.Error("not the SHA-256 of the signed bytes")
			}
		}
		if len(digests) != 1 {
			t.Errorf("%s: another digest of the same message", id)
		}
	}
}

// TestEveryChangedByteIsNoticedByKeys: no byte of a message can be changed but for the letter case of the signature.
func TestEveryChangedByteIsNoticedByKeys(t *testing.T) {
	all := loadKeyVectors(t)
	d := new(Decoder)
	for id, text := range all.PrivateKey {
		signer, err := publickey.ReadSigner([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		message, err := Sign(signer, id, 1727712000, "550e8400-e29b-41d4-a716-446655440000", []byte(`{"t":22}`))
		if err != nil {
			t.Fatal(err)
		}
		v := all.verifierOf(t, id)
		for at := range message {
			changed := append([]byte(nil), message...)
			changed[at] ^= 1
			if e, err := d.Decode(changed); err == nil && v.Verify(e) {
				t.Errorf("%s: byte %d changed: %s", id, at, changed)
			}
		}
	}
}

func BenchmarkKeyVerify(b *testing.B) {
	all := loadKeyVectors(b)
	for _, v := range all.Vectors {
		if v.Expect != "accept" {
			continue
		}
		b.Run(v.Name, func(b *testing.B) {
			d, verifier := new(Decoder), all.verifierOf(b, v.TLSIdentity)
			b.ReportAllocs()
			for b.Loop() {
				e, err := d.Decode([]byte(v.Message))
				if err != nil || !verifier.Verify(e) {
					b.Fatal("not verified")
				}
			}
		})
	}
}
