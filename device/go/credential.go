package device

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

// MaxCommandKeys is the greatest number of the gateway's public keys.
const MaxCommandKeys = 8

// maxSecrets bounds what verifying one command costs.
const maxSecrets = 8

// A Credential signs a device's messages and verifies the commands to it: see Secret and PrivateKey. The zero value does
// neither. It is immutable, safe for concurrent use, and prints no secret.
type Credential struct {
	algorithm   string
	signer      envelope.Signer
	secrets     [][]byte
	commandKeys []*publickey.Key
	signature   int // its length before the hexadecimal encoding, in bytes
}

// Algorithm is the algorithm's name in device.json.
func (c *Credential) Algorithm() string { return c.algorithm }

// String names the algorithm only.
func (c *Credential) String() string { return "device.Credential(" + c.algorithm + ")" }

// GoString is String.
func (c *Credential) GoString() string { return c.String() }

const hmacSHA256 = "HMAC-SHA256"

// Secret returns the credential of a device with a shared secret: the bytes as they are in the registry. With several, while
// one is being replaced, the first signs and each verifies; eight at most. A secret that is empty, only NUL bytes or only
// white space is an error: everyone has it.
func Secret(secrets ...[]byte) (*Credential, error) {
	if len(secrets) < 1 || len(secrets) > maxSecrets {
		return nil, fmt.Errorf("device: one to %d secrets are needed", maxSecrets)
	}
	c := &Credential{algorithm: hmacSHA256, signature: sha256.Size}
	for _, secret := range secrets {
		if len(bytes.Trim(secret, "\x00")) == 0 || len(bytes.TrimSpace(secret)) == 0 {
			return nil, errors.New("device: the secret is empty, only NUL bytes or only white space, and so known to everyone")
		}
		c.secrets = append(c.secrets, bytes.Clone(secret))
	}
	c.signer = envelope.NewSigner(c.secrets[0])
	return c, nil
}

// PrivateKey returns the credential of a device with a private key: ed25519.PrivateKey, *ecdsa.PrivateKey on P-256, or what
// stands for one in a secure element. commandKeys are the gateway's public keys, eight at most; one of another algorithm than
// the device's is ignored, and without any no command is good.
func PrivateKey(private crypto.Signer, commandKeys ...crypto.PublicKey) (*Credential, error) {
	signer, err := publickey.NewSigner(private)
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	return keyed(signer, commandKeys)
}

// ReadPrivateKey is PrivateKey for keys in PEM: the private key in PKCS #8 or SEC 1, and the gateway's public keys one after
// the other. commandKeys may be empty.
func ReadPrivateKey(private, commandKeys []byte) (*Credential, error) {
	signer, err := publickey.ReadSigner(private)
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	keys, err := readCommandKeys(commandKeys)
	if err != nil {
		return nil, err
	}
	return keyed(signer, keys)
}

func readCommandKeys(text []byte) (keys []crypto.PublicKey, err error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if len(keys) == MaxCommandKeys {
			return nil, fmt.Errorf("device: more than %d keys of the gateway", MaxCommandKeys)
		}
		key, err := publickey.ParsePEM(pem.EncodeToMemory(block))
		if err != nil {
			return nil, fmt.Errorf("device: key %d of the gateway: %w", len(keys)+1, err)
		}
		keys, text = append(keys, key), rest
	}
	if len(bytes.TrimSpace(text)) > 0 {
		return nil, errors.New("device: the gateway's keys have something behind them that is no PEM")
	}
	return keys, nil
}

func keyed(signer *publickey.Signer, commandKeys []crypto.PublicKey) (*Credential, error) {
	if len(commandKeys) > MaxCommandKeys {
		return nil, fmt.Errorf("device: more than %d keys of the gateway", MaxCommandKeys)
	}
	algorithm := signer.Public().Algorithm()
	c := &Credential{algorithm: string(algorithm), signature: publickey.SignatureLen, signer: signer}
	for i, public := range commandKeys {
		key, ok := public.(*publickey.Key)
		if !ok {
			var err error
			if key, err = publickey.Of(public); err != nil {
				return nil, fmt.Errorf("device: key %d of the gateway: %w", i+1, err)
			}
		}
		if key.Algorithm() == algorithm {
			c.commandKeys = append(c.commandKeys, key)
		}
	}
	return c, nil
}

// verifies reports whether a signature over text is the gateway's.
func (c *Credential) verifies(text, signature []byte) bool {
	good := false
	for _, secret := range c.secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write(text)
		// Each is compared, so that the time does not tell which secret it was.
		good = hmac.Equal(mac.Sum(nil), signature) || good
	}
	for _, key := range c.commandKeys {
		good = good || key.Verify(text, signature) // nothing here is secret
	}
	return good
}
