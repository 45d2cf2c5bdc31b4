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

// TestClockSetBack: a key whose time is not there yet signs where no other does, whatever that time is; and a rotation then has the same
// effect as ever: the old key signs until the new one does and not after it, and with a theft it is gone.
func TestClockSetBack(t *testing.T) {
	const a = publickey.Ed25519
	month := 30 * 24 * time.Hour
	first := with(t, nil, start, start, a)
	old := first.Signing(a, start).Public()
	back := start.Add(-time.Hour)
	if got := first.Signing(a, back); got == nil || !got.Public().Equal(old) || len(first.Valid(a, back)) != 1 {
		t.Error("the only key does not sign before its time")
	}
	second := with(t, first, start, start.Add(month), a)
	if got := second.Signing(a, back); got == nil || !got.Public().Equal(old) || len(second.Valid(a, back)) != 2 {
		t.Error("of two keys before their time the first one does not sign")
	}
	// The key from before is deleted, so the one of the second rotation signs.
	third := with(t, second, start.Add(month), start.Add(2*month), a)
	if got := third.Signing(a, back); got == nil || !got.Public().Equal(second.Signing(a, start.Add(month)).Public()) {
		t.Error("nothing signs")
	}

	rotated := with(t, first, back, back.Add(time.Minute), a)
	for now, stillOld := range map[time.Time]bool{back: true, back.Add(59 * time.Second): true, back.Add(time.Minute): false, start: false, start.Add(month): false} {
		if got := rotated.Signing(a, now); got.Public().Equal(old) != stillOld {
			t.Errorf("at %v: the old key signs: %v", now, !stillOld)
		}
	}
	for _, fraction := range []time.Duration{0, 1, 999999999} {
		now := back.Add(fraction)
		stolen := with(t, second, now, now, a)
		if len(stolen.Keys()) != 1 || stolen.Signing(a, back) == nil {
			t.Errorf("%v: %d keys", fraction, len(stolen.Keys()))
		}
	}
}

// TestBound: there are never more keys of an algorithm than a device takes, and the other algorithm's do not count.
func TestBound(t *testing.T) {
	set := with(t, nil, start, start, Algorithms()...)
	for i := 1; i < maxKeys; i++ {
		set = with(t, set, start, start.Add(time.Duration(i)*time.Hour), publickey.Ed25519)
	}
	if n := len(set.Valid(publickey.Ed25519, start)); n != 8 {
		t.Errorf("%d keys", n)
	}
	if _, err := set.With(start, start.Add(1000*time.Hour), Algorithms()...); err == nil {
		t.Error("one more is taken")
	}
	set = with(t, set, start, start.Add(1000*time.Hour), publickey.P256)
	set = with(t, set, start.Add(time.Hour), start.Add(1000*time.Hour), publickey.Ed25519) // one has gone
	if n := len(set.Keys()); n != 10 {
		t.Errorf("%d keys of both", n)
	}
	set.keys = append(set.keys, with(t, nil, start, start, publickey.Ed25519).keys...)
	text, err := set.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(text); err == nil {
		t.Error("a file with one more is read")
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
		"too many":          strings.Repeat(key, 2*maxKeys+1),
		"a local time":      strings.Replace(key, line("from"), "from = 2026-01-02T15:04:05", 1),
		"a date":            strings.Replace(key, line("from"), "from = 2026-01-02", 1),
		"a text":            strings.Replace(key, line("from"), "from = '2026-01-02T15:04:05Z'", 1),
		"year 10000 in UTC": strings.Replace(key, line("from"), "from = 9999-12-31T23:59:59-23:59", 1),
		"year -1 in UTC":    strings.Replace(key, line("made"), "made = 0000-01-01T00:00:00+23:00", 1),
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
