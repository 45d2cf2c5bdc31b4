package vectors

import (
	"crypto/elliptic"
	"slices"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

var p256 = elliptic.P256()

// sortByName puts what was made from maps into one order; the rest keeps its own.
func sortByName[T any](list []T, name func(T) string) {
	slices.SortStableFunc(list, func(a, b T) int { return strings.Compare(name(a), name(b)) })
}

// verifiers returns what the gateway verifies a device's messages with.
func verifiers(t *testing.T, d identity) (all []envelope.Verifier) {
	t.Helper()
	for _, s := range d.Secrets {
		all = append(all, envelope.NewVerifier([]byte(s)))
	}
	if d.PublicKey != "" {
		key, err := publickey.ParsePEM([]byte(d.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, envelope.NewKeyVerifier(key))
	}
	return all
}

// verdict is what the gateway says of a message's form and signature.
func verdict(t *testing.T, d identity, message []byte) string {
	t.Helper()
	e, err := new(envelope.Decoder).Decode(message)
	if err != nil {
		return "malformed"
	}
	if slices.ContainsFunc(verifiers(t, d), func(v envelope.Verifier) bool { return v.Verify(e) }) {
		return "good"
	}
	return "bad_signature"
}

// TestGateway holds the gateway's reader and verifiers against the vectors: what devices sign, and what they must not send.
func TestGateway(t *testing.T) {
	doc := build(t)
	byID := make(map[string]identity)
	for _, d := range doc.Devices {
		byID[d.ID] = d
	}
	for _, v := range doc.Messages {
		if got := verdict(t, byID[v.Device], v.Message.bytes()); got != v.Expect {
			t.Errorf("%s: %s, not %s", v.Name, got, v.Expect)
		}
	}
	for _, v := range doc.Sign {
		if v.Message == nil {
			continue
		}
		if got := verdict(t, byID[v.Device], v.Message.bytes()); got != "good" {
			t.Errorf("%s: %s", v.Name, got)
		}
	}
	if len(doc.Messages) < 300 || len(doc.Sign) < 100 || len(doc.Commands) < 200 {
		t.Errorf("only %d messages, %d to sign, %d commands", len(doc.Messages), len(doc.Sign), len(doc.Commands))
	}
}
