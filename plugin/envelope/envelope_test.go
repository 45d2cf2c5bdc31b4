package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// vectors is testdata/envelope-v1.json: what devices send, and what the gateway must say.
type vectors struct {
	Secret           map[string]string `json:"secret"`
	ToleranceSeconds int64             `json:"tolerance_seconds"`
	Vectors          []struct {
		Name, Message, Expect, Topic string
		TLSIdentity                  string `json:"tls_identity"`
		Now                          int64
	}
}

func loadVectors(t testing.TB) vectors {
	t.Helper()
	text, err := os.ReadFile("testdata/envelope-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Vectors) < 50 {
		t.Fatalf("only %d vectors", len(v.Vectors))
	}
	return v
}

// TestVectors holds parsing and signature against the vectors; the checks that need more than the envelope are held
// against them in package plugin.
func TestVectors(t *testing.T) {
	all := loadVectors(t)
	d := new(Decoder)
	for _, v := range all.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			e, err := d.Decode([]byte(v.Message))
			if malformed := v.Expect == "malformed"; malformed != (err != nil) {
				t.Fatalf("expected %s, Decode says %v", v.Expect, err)
			}
			secret, known := all.Secret[v.TLSIdentity]
			if err != nil || !known {
				return
			}
			signed := NewVerifier([]byte(secret)).Verify(e)
			switch v.Expect {
			case "accept", "stale", "future":
				if !signed {
					t.Errorf("expected %s, and the signature does not verify", v.Expect)
				}
			case "bad_signature":
				if signed {
					t.Error("a bad signature verifies")
				}
			}
		})
	}
}

// An envelope of the given members, as text; an empty member is left out.
func message(deviceID, timestamp, messageID, payload, signature string) []byte {
	var members []string
	for _, m := range [][2]string{{"device_id", deviceID}, {"timestamp", timestamp}, {"message_id", messageID}, {"payload", payload}, {"signature", signature}} {
		if m[1] != "" {
			members = append(members, fmt.Sprintf("%q:%s", m[0], m[1]))
		}
	}
	return []byte("{" + strings.Join(members, ",") + "}")
}

const (
	goodID        = `"550e8400-e29b-41d4-a716-446655440000"`
	goodSignature = `"d933a1da132f6897c0157bcf8bf6a86adac6ee7f2fba58c787a6dc387fc5f602"`
)

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, test := range []struct {
		name string
		text []byte
		want error
	}{
		{"good", message(`"a"`, "1", goodID, "1", goodSignature), nil},
		{"good, white space around", append([]byte(" \r\n\t"), message(`"a"`, "1", goodID, "1", goodSignature)...), nil},
		{"longest device id", message(`"`+strings.Repeat("a", 64)+`"`, "1", goodID, "1", goodSignature), nil},
		{"device id too long", message(`"`+strings.Repeat("a", 65)+`"`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"empty device id", message(`""`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"escaped device id", message(`"\u0061"`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"device id with plus", message(`"a+"`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"device id not ASCII", message(`"ä"`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"device id a number", message(`1`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"device id null", message(`null`, "1", goodID, "1", goodSignature), ErrDeviceID},
		{"negative timestamp", message(`"a"`, "-1", goodID, "1", goodSignature), nil},
		{"greatest timestamp", message(`"a"`, "9223372036854775807", goodID, "1", goodSignature), nil},
		{"timestamp too great", message(`"a"`, "9223372036854775808", goodID, "1", goodSignature), ErrTimestamp},
		{"timestamp true", message(`"a"`, "true", goodID, "1", goodSignature), ErrTimestamp},
		{"timestamp a string", message(`"a"`, `"1"`, goodID, "1", goodSignature), ErrTimestamp},
		{"timestamp 1.0", message(`"a"`, "1.0", goodID, "1", goodSignature), ErrTimestamp},
		{"timestamp 1e3", message(`"a"`, "1e3", goodID, "1", goodSignature), ErrTimestamp},
		{"timestamp 01", message(`"a"`, "01", goodID, "1", goodSignature), ErrSyntax},
		{"timestamp +1", message(`"a"`, "+1", goodID, "1", goodSignature), ErrTimestamp},
		{"hyphen misplaced", message(`"a"`, "1", `"550e84000-e29b-41d4-a716-44665544000"`, "1", goodSignature), ErrMessageID},
		{"id escaped", message(`"a"`, "1", `"\u0035\u0035\u0030\u0065\u0038\u0034"`, "1", goodSignature), ErrMessageID},
		{"signature too long", message(`"a"`, "1", goodID, "1", `"0`+goodSignature[1:]), ErrSignature},
		{"signature null", message(`"a"`, "1", goodID, "1", `null`), ErrSignature},
		{"no payload", message(`"a"`, "1", goodID, "", goodSignature), ErrMissing},
		{"signature missing", message(`"a"`, "1", goodID, "1", ""), ErrMissing},
		{"empty object", []byte("{}"), ErrMissing},
		{"escaped member name", []byte(`{"device\u005fid":"a"}`), ErrMember},
		{"member in another case", []byte(`{"Device_ID":"a"}`), ErrMember},
		{"empty", nil, ErrSyntax},
		{"NUL", []byte{0}, ErrSyntax},
		{"byte order mark", append([]byte("\xef\xbb\xbf"), message(`"a"`, "1", goodID, "1", goodSignature)...), ErrSyntax},
		{"invalid UTF-8", message(`"a"`, "1", goodID, "\"\xff\"", goodSignature), ErrSyntax},
		{"same name in two spellings", message(`"a"`, "1", goodID, `{"b":1,"\u0062":2}`, goodSignature), ErrSyntax},
		{"deepest payload", message(`"a"`, "1", goodID, deep(MaxDepth-1), goodSignature), nil},
		{"payload too deep", message(`"a"`, "1", goodID, deep(MaxDepth), goodSignature), ErrDepth},
		{"many brackets, not deep", message(`"a"`, "1", goodID, "["+strings.Repeat("[],", 500)+"[]]", goodSignature), nil},
		{"brackets in a string", message(`"a"`, "1", goodID, `"`+strings.Repeat(`[\"{`, 500)+`"`, goodSignature), nil},
		{"only brackets", message(`"a"`, "1", goodID, strings.Repeat("[", 1<<16), goodSignature), ErrDepth},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := new(Decoder).Decode(test.text); !errors.Is(err, test.want) {
				t.Errorf("%.80q: got %v, want %v", test.text, err, test.want)
			}
		})
	}
}

func TestSignDecodeVerify(t *testing.T) {
	secret := []byte("supersecretkey123")
	for _, payload := range []string{`0`, `""`, `{}`, `null`, `22.0`, `{"b": 1, "a":"é"}`, `"\u00e9"`, ` [1 , 2] `} {
		text, err := Sign(NewSigner(secret), "sensor_001", 1727712000, strings.Trim(goodID, `"`), []byte(payload))
		if err != nil {
			t.Fatalf("%s: %v", payload, err)
		}
		e, err := new(Decoder).Decode(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if !NewHMAC(secret).Verify(e) {
			t.Errorf("%s: the signature does not verify", text)
		}
		if NewHMAC([]byte("supersecretkey124")).Verify(e) {
			t.Errorf("%s: the signature verifies with another secret", text)
		}
		if string(e.Payload) != strings.TrimSpace(payload) {
			t.Errorf("payload %q became %q", payload, e.Payload)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	id := strings.Trim(goodID, `"`)
	for _, test := range []struct{ name, secret, device, id, payload string }{
		{"no secret", "", "a", id, "1"},
		{"device id", "s", "a/b", id, "1"},
		{"message id", "s", "a", "42", "1"},
		{"two payloads", "s", "a", id, "1 2"},
		{"no payload", "s", "a", id, ""},
		{"payload too deep", "s", "a", id, strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)},
	} {
		if text, err := Sign(NewSigner([]byte(test.secret)), test.device, 1, test.id, []byte(test.payload)); err == nil {
			t.Errorf("%s: signed as %s", test.name, text)
		}
	}
}

// One changed character anywhere in an envelope must not leave it both parsable and signed, unless it is letter case
// that carries no meaning or white space that is not signed.
func TestEveryChangedByteIsNoticed(t *testing.T) {
	secret := []byte("supersecretkey123")
	text, err := Sign(NewSigner(secret), "sensor_001", 1727712000, strings.Trim(goodID, `"`), []byte(`{"temperature":22,"unit":"C"}`))
	if err != nil {
		t.Fatal(err)
	}
	d, key := new(Decoder), NewHMAC(secret)
	signature := bytes.Index(text, []byte(`"signature"`))
	for i := range text {
		for b := range 256 {
			changed := bytes.Clone(text)
			changed[i] = byte(b)
			if changed[i] == text[i] || i > signature && changed[i]|0x20 == text[i]|0x20 {
				continue
			}
			if e, err := d.Decode(changed); err == nil && key.Verify(e) {
				t.Errorf("byte %d: %q for %q passes", i, changed[i], text[i])
			}
		}
	}
}

func TestDecodeAndVerifyAllocateNothing(t *testing.T) {
	d, key := new(Decoder), NewHMAC([]byte("supersecretkey123"))
	vectors := loadVectors(t)
	good := []byte(vectors.Vectors[0].Message)
	if n := testing.AllocsPerRun(100, func() {
		e, err := d.Decode(good)
		if err != nil || !key.Verify(e) {
			t.Error("not accepted")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDecode holds that what is accepted parses again to the same members, and that the canonical form is its own.
func FuzzDecode(f *testing.F) {
	for _, v := range loadVectors(f).Vectors {
		f.Add([]byte(v.Message))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := new(Decoder)
		e, err := d.Decode(text)
		if err != nil {
			return
		}
		var members struct {
			DeviceID  string         `json:"device_id"`
			Timestamp int64          `json:"timestamp"`
			MessageID string         `json:"message_id"`
			Payload   jsontext.Value `json:"payload"`
			Signature string         `json:"signature"`
		}
		if err := json.Unmarshal(text, &members); err != nil {
			t.Fatalf("encoding/json does not read what was accepted: %v", err)
		}
		if members.DeviceID != string(e.DeviceID) || members.Timestamp != e.Timestamp || members.MessageID != string(e.MessageIDText) ||
			!bytes.Equal(members.Payload, e.Payload) || !strings.EqualFold(members.Signature, fmt.Sprintf("%x", e.Signature)) {
			t.Fatalf("encoding/json reads %+v where Decode reads %+v", members, e)
		}
		canonical := bytes.Clone(e.Canonical())
		again, err := AppendCanonical(nil, canonical)
		if err != nil || !bytes.Equal(again, canonical) {
			t.Fatalf("canonical form %q has the canonical form %q, %v", canonical, again, err)
		}
		rebuilt := message(fmt.Sprintf("%q", e.DeviceID), fmt.Sprint(e.Timestamp), fmt.Sprintf("%q", e.MessageIDText), string(canonical), fmt.Sprintf(`"%x"`, e.Signature))
		f, err := new(Decoder).Decode(rebuilt)
		if err != nil || string(f.DeviceID) != string(e.DeviceID) || f.Timestamp != e.Timestamp || f.MessageID != e.MessageID || !bytes.Equal(f.Signature, e.Signature) {
			t.Fatalf("%q does not parse to the same members: %v", rebuilt, err)
		}
	})
}

func BenchmarkDecodeAndVerify(b *testing.B) {
	d, key := new(Decoder), NewHMAC([]byte("supersecretkey123"))
	good := []byte(loadVectors(b).Vectors[0].Message)
	b.ReportAllocs()
	for b.Loop() {
		e, err := d.Decode(good)
		if err != nil || !key.Verify(e) {
			b.Fatal(err)
		}
	}
}

// TestWorkedExample holds docs/envelope.md against the code: its message, canonical form, signed bytes and signature.
func TestWorkedExample(t *testing.T) {
	text, err := os.ReadFile("../../docs/envelope.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## Worked example")
	var blocks []string
	for i, part := range strings.Split(section, "```") {
		if i%2 == 1 {
			_, block, _ := strings.Cut(part, "\n")
			blocks = append(blocks, strings.TrimSuffix(block, "\n"))
		}
	}
	published, canonical, dump, signature := blocks[0], blocks[1], blocks[2], blocks[3]

	e, err := new(Decoder).Decode([]byte(published))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(e.Canonical()); got != canonical {
		t.Errorf("canonical form %q, the page says %q", got, canonical)
	}
	if got := fmt.Sprintf("%x", e.Signature); got != signature {
		t.Errorf("signature %s, the page says %s", got, signature)
	}
	if !NewHMAC([]byte("supersecretkey123")).Verify(e) {
		t.Error("the page's message does not verify")
	}
	if !strings.Contains(section, fmt.Sprintf("these %d bytes (one line)", len(published))) {
		t.Errorf("the page does not say that the message has %d bytes", len(published))
	}
	var dumped []byte
	for line := range strings.Lines(dump) {
		for _, field := range strings.Fields(line[6:53]) {
			var b byte
			if _, err := fmt.Sscanf(field, "%02x", &b); err != nil {
				t.Fatal(err)
			}
			dumped = append(dumped, b)
		}
	}
	if want := "sensor_001" + "1727712000" + "550e8400-e29b-41d4-a716-446655440000" + canonical; string(dumped) != want {
		t.Errorf("the page dumps %q, signed is %q", dumped, want)
	}
}
