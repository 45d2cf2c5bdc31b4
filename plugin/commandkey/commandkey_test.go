package commandkey

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/publickey"
)

var start = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)

func with(t *testing.T, s *Set, now, from time.Time, algorithms ...publickey.Algorithm) *Set {
	t.Helper()
	next, err := s.With(now, from, algorithms...)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// TestRotation: a new key signs from its time on, and until then the old one does; what has been replaced is gone from the next
// file, a key that was yet to sign is replaced by the next one, and devices need to know those that sign now or later.
func TestRotation(t *testing.T) {
	later := start.Add(30 * 24 * time.Hour)
	first := with(t, nil, start, start, Algorithms()...)
	for _, a := range Algorithms() {
		if first.Signing(a, start.Add(-time.Second)) != nil {
			t.Errorf("%s signs before its time", a)
		}
		old := first.Signing(a, start).Public()
		second := with(t, first, start.Add(time.Hour), later, a)
		if got := second.Signing(a, later.Add(-time.Second)).Public(); !got.Equal(old) {
			t.Errorf("%s: the old key does not sign until the new one does", a)
		}
		replacement := second.Signing(a, later).Public()
		if replacement.Equal(old) || len(second.Valid(a, start)) != 2 || len(second.Valid(a, later)) != 1 || len(first.Valid(a, start)) != 1 {
			t.Errorf("%s: %d, %d", a, len(second.Valid(a, start)), len(second.Valid(a, later)))
		}
		third := with(t, second, start.Add(2*time.Hour), later, a)
		if len(third.Valid(a, start.Add(2*time.Hour))) != 2 || third.Signing(a, later).Public().Equal(replacement) {
			t.Errorf("%s: a key that was yet to sign was not replaced", a)
		}
		stolen := with(t, second, start.Add(2*time.Hour), start.Add(2*time.Hour), a)
		if keys := stolen.Valid(a, start.Add(2*time.Hour)); len(keys) != 1 || keys[0].Equal(old) || keys[0].Equal(replacement) {
			t.Errorf("%s: a stolen key, or its successor, is still there", a)
		}
		if len(stolen.Keys()) != 2 {
			t.Errorf("%d keys of both algorithms", len(stolen.Keys()))
		}
	}
	var none *Set
	if none.Signing(publickey.P256, start) != nil || none.Valid(publickey.P256, start) != nil || !none.Equal(new(Set)) || first.Equal(none) {
		t.Error("a set without keys has some")
	}
}

// TestFile: what is written is read again, what is signed with a key verifies with its public half, and what is no such file
// is refused without a word of its content.
func TestFile(t *testing.T) {
	set := with(t, nil, start, start, Algorithms()...)
	text, err := set.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(text)
	if err != nil || !again.Equal(set) {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, a := range Algorithms() {
		signature, err := again.Signing(a, start).Signer().Signature([]byte("text"))
		if err != nil || !set.Valid(a, start)[0].Verify([]byte("text"), signature) {
			t.Errorf("%s: %v", a, err)
		}
	}
	line := func(name string) string {
		_, rest, _ := strings.Cut(string(text), "\n"+name+" = ")
		value, _, _ := strings.Cut(rest, "\n")
		return name + " = " + value
	}
	key := "[[key]]\n" + line("private_key") + "\n" + line("made") + "\n" + line("from") + "\n"
	rsa := "MIIBVAIBADANBgkqhkiG9w0BAQEFAASCAT4wggE6AgEAAkEA"
	for name, wrong := range map[string]string{
		"nothing":           "",
		"not TOML":          "-----BEGIN PRIVATE KEY-----\nabcdefghijk\n",
		"another member":    key + "x = 1\n",
		"another table":     key + "[other]\n",
		"twice the same":    key + key,
		"no time":           "[[key]]\n" + line("private_key") + "\n" + line("made") + "\n",
		"no key":            "[[key]]\n" + line("made") + "\n" + line("from") + "\n",
		"not base64":        strings.Replace(key, `private_key = '`, `private_key = '!`, 1),
		"not a private key": strings.Replace(key, line("private_key"), `private_key = "`+rsa+`"`, 1),
		"too many":          strings.Repeat(key, maxKeys+1),
	} {
		_, err := Parse([]byte(wrong))
		if err == nil {
			t.Errorf("%s: read", name)
		} else if len(wrong) > 50 && strings.Contains(err.Error(), strings.Trim(line("private_key")[20:40], `'"`)) || strings.Contains(fmt.Sprint(err), "abcdef") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNothingPrintsIt: no way of printing shows a private key.
func TestNothingPrintsIt(t *testing.T) {
	set := with(t, nil, start, start, publickey.Ed25519)
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "keys", set)
	texts := []string{logged.String(), set.String()}
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, set), fmt.Sprintf(verb, struct{ S *Set }{set}))
	}
	for _, text := range texts {
		if !strings.Contains(text, "[1 command keys]") && !strings.Contains(text, "0x") || len(text) > 150 {
			t.Errorf("%s", text)
		}
	}
}
