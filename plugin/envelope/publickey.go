package envelope

import (
	"crypto/sha256"

	"mosquitto-bouncer/plugin/publickey"
)

// Devices with a public key sign the same bytes as devices with a secret, with Ed25519 or with ECDSA on P-256 and SHA-256.
// Nothing that one key or algorithm signs passes for what another one has:
//
//   - Algorithms. The message does not say how it is signed. The registry says what the device has, and a device has secrets
//     or public keys, never both. The other way would be a credential of bytes with the name of its algorithm; a mistake
//     with the name would then make a public key, which is no secret, the key of an HMAC. Here the two are of different
//     types, each with a constructor of its own: a []byte can only become an HMAC, a *publickey.Key only verifies
//     with its own algorithm. Besides, an HMAC has 32 bytes and the signature of a public key 64, and a verifier takes its
//     own length alone. Ed25519 and ECDSA have the same length; which of them a key is follows from the key's type.
//   - Keys. The signed bytes begin with the device's id, which the certificate must show too: a signature is of use for this
//     device only, even if two devices have the same key, or one makes a key under which the signature of another verifies.
//   - TLS. The key of a device's certificate may sign the messages too. What is signed for a message begins with 38
//     printable ASCII characters or more, none of them a space: device id, seconds, message id. A client's signature in
//     TLS 1.3 is over 64 spaces and what follows (RFC 8446, section 4.4.3), in TLS 1.2 over the handshake, whose first byte
//     is 0x01 (RFC 5246, section 7.4.8). A certificate, or a request for one, is DER, of which one of the first three bytes
//     is not printable ASCII. So a signature of one kind is never one of another.
//   - Commands. The device's key signs no commands, and the gateway cannot sign with it: it has the public half only, and signs
//     commands with a key of its own, with which no message is verified. The id of a command is a UUID of version 8, and no
//     message with one is accepted.
//   - Forms. A message has one signature text but for the case of its digits: see publickey.Key.Verify. What makes two
//     messages the same is not the signature in any case, since a new one of ECDSA differs each time: see Digest.

// keyVerifier is the Verifier of a public key.
type keyVerifier struct{ key *publickey.Key }

// NewKeyVerifier returns the verifier of a device's public key.
func NewKeyVerifier(key *publickey.Key) Verifier { return keyVerifier{key} }

// Verify implements Verifier. What is verified is public, so its time tells nothing.
func (v keyVerifier) Verify(e *Envelope) bool {
	if len(e.Signature) != publickey.SignatureLen {
		return false
	}
	if v.key.Verify(e.joined(e.likelier()), e.Signature) {
		return true
	}
	other := e.other()
	return other != nil && v.key.Verify(e.joined(other), e.Signature)
}

// joined returns the bytes under the signature, with payload in the place of P. They are part of the decoder's memory, and
// valid until the next call: Ed25519 reads them twice, so they are needed in one piece.
func (e *Envelope) joined(payload []byte) []byte {
	text := append(e.decoder.text[:0], e.DeviceID...)
	text = append(text, e.timestampText...)
	text = append(text, e.MessageIDText...)
	text = append(text, payload...)
	e.decoder.text = text
	return text
}

// Digest returns the SHA-256 of the bytes under the signature, with the payload as sent. It stands for the message where the
// signature cannot, because the same message may be signed again and then has another one. It is part of the decoder's memory.
func (e *Envelope) Digest() *[sha256.Size]byte {
	if !e.digested {
		e.decoder.digest, e.digested = sha256.Sum256(e.joined(e.Payload)), true
	}
	return &e.decoder.digest
}
