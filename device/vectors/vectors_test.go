// Package vectors holds the test vectors that the libraries for devices and the gateway pass, and makes them.
package vectors

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

var update = flag.Bool("update", false, "write device-v1.json")

const file = "device-v1.json"

// A document is device-v1.json.
type document struct {
	Comment  []string   `json:"comment"`
	Devices  []identity `json:"devices"`
	Sign     []signing  `json:"sign"`
	Messages []received `json:"messages"`
	Commands []received `json:"commands"`
	Memory   []memory   `json:"memory"`
	Answers  []answer   `json:"answers"`
	Notices  []notice   `json:"notices"`
}

type identity struct {
	ID                string   `json:"device_id"`
	Algorithm         string   `json:"algorithm"`
	Secrets           []string `json:"secrets,omitempty"`
	PrivateKey        string   `json:"private_key,omitempty"`
	PublicKey         string   `json:"public_key,omitempty"`
	CommandKeys       []string `json:"command_keys,omitempty"`
	CommandPrivateKey string   `json:"command_private_key,omitempty"`
}

// A text is a string in JSON, hexadecimal digits where it is not UTF-8, or a long one: before, x so many times, after.
type text struct {
	Text *string `json:"text,omitempty"`
	Hex  string  `json:"hex,omitempty"`
	Long *long   `json:"long,omitempty"`
}

type long struct {
	Before string `json:"before"`
	Times  int    `json:"x_times"`
	After  string `json:"after"`
}

func textOf[T ~string | ~[]byte](b T) text {
	s := string(b)
	if before, rest, found := strings.Cut(s, strings.Repeat("x", 1000)); found {
		after := strings.TrimLeft(rest, "x")
		return text{Long: &long{before, 1000 + len(rest) - len(after), after}}
	}
	if utf8.ValidString(s) {
		return text{Text: &s}
	}
	return text{Hex: hex.EncodeToString([]byte(s))}
}

func (t text) bytes() []byte {
	switch {
	case t.Text != nil:
		return []byte(*t.Text)
	case t.Long != nil:
		return []byte(t.Long.Before + strings.Repeat("x", t.Long.Times) + t.Long.After)
	}
	b, _ := hex.DecodeString(t.Hex)
	return b
}

type signing struct {
	Name      string `json:"name"`
	Device    string `json:"device"`
	Timestamp int64  `json:"timestamp"`
	MessageID string `json:"message_id"`
	Payload   text   `json:"payload"`
	Message   *text  `json:"message,omitempty"` // what is made, where the algorithm makes one signature only
	Error     string `json:"error,omitempty"`
}

type received struct {
	Name    string `json:"name"`
	Device  string `json:"device"` // who receives a command; whose key verifies a message
	Message text   `json:"message"`
	Now     *int64 `json:"now,omitempty"` // absent: no clock
	Expect  string `json:"expect"`
	ID      string `json:"id,omitempty"`
	Command *text  `json:"command,omitempty"`
	Expires int64  `json:"expires,omitempty"`
}

type memory struct {
	Name     string `json:"name"`
	Capacity int    `json:"capacity"`
	Steps    []step `json:"steps"`
}

type step struct {
	ID      string `json:"id"`
	Expires int64  `json:"expires"`
	Expect  string `json:"expect"`
}

type answer struct {
	CommandID string `json:"command_id"`
	Status    string `json:"status"`
	Result    *text  `json:"result,omitempty"` // absent: none
	Payload   text   `json:"payload"`
}

type notice struct {
	Name       string `json:"name"`
	Message    text   `json:"message"`
	Good       bool   `json:"good"`
	MessageID  string `json:"message_id,omitempty"` // absent: null
	Reason     string `json:"reason,omitempty"`
	ServerTime int64  `json:"server_time,omitempty"`
}

const (
	now       = 1727712000
	messageID = "550e8400-e29b-41d4-a716-446655440000"
	commandID = "01923456-789a-8bcd-8def-0123456789ab"
)

// deterministic signs the same text with the same bytes each time: ECDSA as in RFC 6979.
type deterministic struct{ private crypto.Signer }

func (d deterministic) Signature(text []byte) ([]byte, error) {
	if private, ok := d.private.(ed25519.PrivateKey); ok {
		return ed25519.Sign(private, text), nil
	}
	sum := sha256.Sum256(text)
	der, err := d.private.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, err
	}
	signature := make([]byte, publickey.SignatureLen)
	rs.R.FillBytes(signature[:32])
	rs.S.FillBytes(signature[32:])
	return publickey.LowS(signature), nil
}

func publicPEM(t *testing.T, private crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// keyOf makes a private key of a text, the same each time: these keys are for tests only.
func keyOf(t *testing.T, algorithm publickey.Algorithm, seed string) (crypto.Signer, string) {
	t.Helper()
	sum := sha256.Sum256([]byte(seed))
	var private crypto.Signer = ed25519.NewKeyFromSeed(sum[:])
	if algorithm == publickey.P256 {
		key, err := ecdsa.ParseRawPrivateKey(p256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		private = key
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return private, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// who are the devices of the vectors, with what signs for them and for the gateway.
type who struct {
	identity
	signer, gateway envelope.Signer
}

func devices(t *testing.T) []who {
	secrets := []string{"supersecretkey123", "the-older-secret-0123456789"}
	hmacSigner := envelope.NewSigner([]byte(secrets[0]))
	all := []who{{identity{ID: "sensor_001", Algorithm: "HMAC-SHA256", Secrets: secrets}, hmacSigner, hmacSigner}}
	for _, d := range []struct {
		id        string
		algorithm publickey.Algorithm
	}{{"ed25519_001", publickey.Ed25519}, {"p256_001", publickey.P256}} {
		private, privatePEM := keyOf(t, d.algorithm, "device "+d.id)
		gateway, gatewayPEM := keyOf(t, d.algorithm, "gateway "+d.id)
		older, _ := keyOf(t, d.algorithm, "older gateway "+d.id)
		other, _ := keyOf(t, publickey.P256, "other")
		if d.algorithm == publickey.P256 {
			other, _ = keyOf(t, publickey.Ed25519, "other")
		}
		all = append(all, who{identity{
			ID: d.id, Algorithm: string(d.algorithm), PrivateKey: privatePEM, PublicKey: publicPEM(t, private),
			CommandKeys:       []string{publicPEM(t, older), publicPEM(t, other), publicPEM(t, gateway)},
			CommandPrivateKey: gatewayPEM,
		}, deterministic{private}, deterministic{gateway}})
	}
	return all
}

// sign makes a message without looking at anything: members and signature are over the texts as they are.
func sign(t *testing.T, s envelope.Signer, id, timestamp, messageID, payload string) string {
	t.Helper()
	signature, err := s.Signature([]byte(id + timestamp + messageID + payload))
	if err != nil {
		t.Fatal(err)
	}
	return envelopeOf(id, timestamp, messageID, payload, hex.EncodeToString(signature))
}

func envelopeOf(id, timestamp, messageID, payload, signature string) string {
	return fmt.Sprintf(`{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":%s,"signature":"%s"}`, id, timestamp, messageID, payload, signature)
}

func build(t *testing.T) document {
	t.Helper()
	doc := document{Comment: []string{
		"Test vectors of the libraries for devices and of the gateway; device/README.md is the specification. The private keys are published: they are for tests only.",
		"A text is {\"text\":...}, {\"hex\":...} where it is not UTF-8, or {\"long\":...}: before, the letter x so many times, after. sign: the message that is made, absent for ECDSA, whose signatures differ, or the error.",
		"messages: verified as sent, without a clock, by the device's own secret or public key, as the gateway does. commands: what reaches a device; now is absent without a clock.",
	}}
	all := devices(t)
	for _, d := range all {
		doc.Devices = append(doc.Devices, d.identity)
	}
	doc.Sign = signings(t, all)
	doc.Messages = messages(t, all)
	doc.Commands = commands(t, all)
	doc.Memory = memories()
	doc.Answers = answers()
	doc.Notices = notices()
	return doc
}

func signings(t *testing.T, all []who) (list []signing) {
	for _, d := range all {
		for _, p := range payloads {
			s := signing{Name: d.Algorithm + ": " + p.name, Device: d.ID, Timestamp: now, MessageID: messageID, Payload: textOf(p.text)}
			if d.Algorithm != string(publickey.P256) {
				m := textOf(sign(t, d.signer, d.ID, fmt.Sprint(now), messageID, p.text))
				s.Message = &m
			}
			list = append(list, s)
		}
	}
	d := all[0]
	good := func(name string, timestamp int64, id, payload, signed string) {
		m := textOf(sign(t, d.signer, d.ID, fmt.Sprint(timestamp), id, signed))
		list = append(list, signing{Name: name, Device: d.ID, Timestamp: timestamp, MessageID: id, Payload: textOf(payload), Message: &m})
	}
	bad := func(name, device string, timestamp int64, id, payload, err string) {
		list = append(list, signing{Name: name, Device: device, Timestamp: timestamp, MessageID: id, Payload: textOf(payload), Error: err})
	}
	good("white space around the payload is not sent", now, messageID, " \t\r\n{ } \n", "{ }")
	good("1970", 0, messageID, "1", "1")
	good("the largest timestamp", 9007199254740991, messageID, "1", "1")
	good("an id in upper case", now, strings.ToUpper(messageID), "1", "1")
	good("an id of version 7", now, "01923456-789a-7bcd-8def-0123456789ab", "1", "1")
	bad("a timestamp before 1970", d.ID, -1, messageID, "1", "timestamp")
	bad("a timestamp above 2^53-1", d.ID, 9007199254740992, messageID, "1", "timestamp")
	for name, id := range map[string]string{"an id without hyphens": strings.ReplaceAll(messageID, "-", ""), "an id in braces": "{" + messageID + "}",
		"no id": "", "an id with another letter": "g" + messageID[1:], "an id of version 8": commandID, "an id that is too long": messageID + "0"} {
		bad(name, d.ID, now, id, "1", "message_id")
	}
	for _, id := range []string{"", "a/b", "a b", "+", "#", strings.Repeat("a", 65), "ä", "a\"b", "a\x00"} {
		bad(fmt.Sprintf("the device id %.12q", id), id, now, messageID, "1", "device_id")
	}
	for _, p := range badPayloads {
		bad("no payload: "+p.name, d.ID, now, messageID, p.text, "payload")
	}
	room := 65536 - len(envelopeOf(d.ID, fmt.Sprint(now), messageID, `""`, strings.Repeat("0", 64)))
	full := `"` + strings.Repeat("x", room) + `"`
	good("as long as it may be", now, messageID, full, full)
	bad("one byte too long", d.ID, now, messageID, `"`+strings.Repeat("x", room+1)+`"`, "too_large")
	sortByName(list, func(s signing) string { return s.Name })
	return list
}

func encode(t *testing.T, doc document) []byte {
	t.Helper()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(doc); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestCurrent: the file is what this package makes. `go test ./device/vectors -update` writes it.
func TestCurrent(t *testing.T) {
	made := encode(t, build(t))
	if *update {
		if err := os.WriteFile(file, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	found, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(found, made) {
		t.Fatalf("%s is not what this test makes: %v; go test ./device/vectors -update", file, err)
	}
}
