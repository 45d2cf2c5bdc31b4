package publickey

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
)

// A Signer signs with a private key. Safe for concurrent use.
type Signer struct {
	private crypto.Signer
	public  *Key
}

// NewSigner returns the Signer of a private key: ed25519.PrivateKey, *ecdsa.PrivateKey, or what stands for one in hardware.
func NewSigner(private crypto.Signer) (*Signer, error) {
	public, err := Of(private.Public())
	if err != nil {
		return nil, err
	}
	return &Signer{private, public}, nil
}

// ReadSigner reads a private key in PEM: PKCS #8, or of SEC 1 as OpenSSL writes it.
func ReadSigner(text []byte) (*Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue // "EC PARAMETERS" comes before an "EC PRIVATE KEY"
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, errors.New("the private key cannot be read: it is damaged, or of a type that does not sign")
		}
		return NewSigner(signer)
	}
	return nil, errors.New("no private key in PEM, which begins with -----BEGIN PRIVATE KEY-----")
}

// Public returns the public half.
func (s *Signer) Public() *Key { return s.public }

// Signature returns the signature over text, which Public().Verify verifies.
func (s *Signer) Signature(text []byte) ([]byte, error) {
	if s.public.Algorithm() == Ed25519 {
		return s.private.Sign(rand.Reader, text, crypto.Hash(0))
	}
	sum := sha256.Sum256(text)
	der, err := s.private.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 {
		return nil, errors.New("the signer has not returned a signature of ECDSA")
	}
	signature := make([]byte, SignatureLen)
	rs.R.FillBytes(signature[:SignatureLen/2])
	rs.S.FillBytes(signature[SignatureLen/2:])
	return LowS(signature), nil
}
