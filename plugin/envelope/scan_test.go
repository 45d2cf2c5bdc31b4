package envelope

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// oracle is jsontext's word on a text that holds one value: its canonical form, and whether it is JSON at all.
func oracle(text []byte) ([]byte, bool) {
	value := jsontext.Value(bytes.Clone(text))
	if !value.IsValid() {
		return nil, false
	}
	canonical, err := jsontext.AppendFormat(nil, value, jsontext.ReorderRawObjects(true), jsontext.PreserveRawStrings(true))
	return canonical, err == nil
}

// agree fails the test unless scanner and oracle say the same of text.
func agree(t *testing.T, text []byte) {
	t.Helper()
	want, valid := oracle(text)
	got, err := AppendCanonical(nil, text)
	if err == ErrDepth {
		return // a limit that the oracle does not have
	}
	if (err == nil) != valid {
		t.Fatalf("%.200q: got %v, jsontext accepts it: %v", text, err, valid)
	}
	if valid && !bytes.Equal(got, want) {
		t.Fatalf("%.200q: canonical form\n%q\njsontext's\n%q", text, got, want)
	}
	// In an envelope the same, though large objects are sorted later.
	e, err := new(Decoder).Decode(message(`"a"`, "1", goodID, string(bytes.Trim(text, " \t\r\n")), goodSignature))
	if (err == nil) != valid && !bytes.ContainsAny(text, `,`) || valid && err != nil {
		t.Fatalf("%.200q as a payload: %v, jsontext accepts it: %v", text, err, valid)
	}
	if valid && !bytes.Equal(e.Canonical(), want) {
		t.Fatalf("%.200q as a payload: canonical form\n%q\njsontext's\n%q", text, e.Canonical(), want)
	}
}

var scannerSeeds = []string{
	``, ` `, `0`, `-0`, `00`, `01`, `-`, `1.`, `.5`, `1.5`, `1e5`, `1E+5`, `1e-`, `1e`, `-1.25e+30`, `+1`, `1 2`, `0x1`, `NaN`, `Infinity`,
	`true`, `tru`, `truex`, `false`, `null`, `nul`, `""`, `"`, `"\`, `"\"`, `"a\u0000"`, "\"\x00\"", "\"\x1f\"", "\"\x7f\"", "\"\xff\"",
	"\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xef\xbf\xbd\"", `"\ud800"`, `"\udc00"`, `"\ud800\udc00"`, `"\ud800\ud800"`,
	`"\uD83D\uDE00"`, `"\u12g4"`, `"\u123"`, `"\x41"`, `"\/\b\f\n\r\t\\\""`, `[]`, `[ ]`, `[1]`, `[1,]`, `[,1]`, `[1 2]`, `[`, `]`, `[[[]]]`,
	`{}`, `{ }`, `{"a":1}`, `{"a":1,}`, `{"a" : 1 , "b" : [ ] }`, `{"b":1,"a":2}`, `{"a":1,"a":2}`, `{"b":1,"a":2,"b":3}`, `{"\u0061":1,"a":2}`,
	`{"a":1,"\u0061b":2,"aa":3}`, `{a:1}`, `{"a"}`, `{"a":}`, `{:1}`, `{"a":1 "b":2}`, `{"😀":1,"\ufffd":2,"ﬀ":3}`, `{"\ud83d\ude00":1,"\uff00":2}`,
	`{"z":{"y":{"x":1,"a":2},"b":3},"c":[{"q":1,"p":2}]}`, "\ufeff1", "1\x00", "\x001", `{"":1,"\u0000":2}`, `{"\/":1,"/":2}`,
}

func TestScannerAgreesWithJSONText(t *testing.T) {
	for _, seed := range scannerSeeds {
		agree(t, []byte(seed))
	}
}

// Objects of many members, in every order, some with names that differ in their escapes alone.
func TestLargeObjects(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var members []string
		n := 1 + r.IntN(100)
		for range n {
			name := strconv.Itoa(r.IntN(3000))
			if r.IntN(3) == 0 {
				name = fmt.Sprintf(`\u%04x`, name[0]) + name[1:]
			}
			value := "0"
			if r.IntN(10) == 0 {
				value = `{"b":1,"a":[{"d":2,"c":3}]}`
			}
			members = append(members, `"`+name+`":`+value)
		}
		agree(t, []byte("{"+strings.Join(members, " , ")+"}"))
	}
}

// FuzzScanner holds the scanner against jsontext: what the one accepts the other accepts, with the same canonical form,
// which is its own.
func FuzzScanner(f *testing.F) {
	for _, seed := range scannerSeeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		agree(t, text)
		if canonical, err := AppendCanonical(nil, text); err == nil {
			agree(t, canonical)
			if again, err := AppendCanonical(nil, canonical); err != nil || !bytes.Equal(again, canonical) {
				t.Fatalf("canonical form %q has the canonical form %q, %v", canonical, again, err)
			}
		}
	})
}

// The most expensive messages of 64 KiB that a device can think of must not hold up the broker for long.
func BenchmarkDearestPayload(b *testing.B) {
	const size = 64 << 10
	descending := func(name func(i int) string) string {
		var members []string
		for i, n := 0, 2; n < size-100; i++ {
			members = append(members, `"`+name(i)+`":0`)
			n += len(members[i]) + 1
		}
		for i, j := 0, len(members)-1; i < j; i, j = i+1, j-1 {
			members[i], members[j] = members[j], members[i]
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	digits := func(i int) string { return strconv.Itoa(10000 + i) }
	for name, payload := range map[string]string{
		"many short names":    descending(digits),
		"long equal prefixes": descending(func(i int) string { return strings.Repeat("a", 200) + digits(i) }),
		"escaped prefixes":    descending(func(i int) string { return strings.Repeat(`\u0061`, 30) + digits(i) }),
		"deep objects": strings.Repeat(`{"b":0,"a":`, MaxDepth-1) + `"` + strings.Repeat("x", size-12*MaxDepth-100) + `"` +
			strings.Repeat("}", MaxDepth-1),
		"one long string": `"` + strings.Repeat("x", size-100) + `"`,
		"Chinese":         `"` + strings.Repeat("汉", size/3-100) + `"`,
		"surrogate pairs": `"` + strings.Repeat(`\ud83d\ude00`, size/12-100) + `"`,
		"many arrays":     "[" + strings.Repeat("[],", size/3-100) + "[]]",
	} {
		text := message(`"sensor_001"`, "1727712000", goodID, payload, goodSignature)
		b.Run(name, func(b *testing.B) {
			d := new(Decoder)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Decode(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
