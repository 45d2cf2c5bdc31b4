package devices

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"unicode/utf8"
)

// A generator makes JSON texts that are easy to get wrong.
type generator struct{ *rand.Rand }

func (g generator) pick(from ...string) string { return from[g.IntN(len(from))] }

func (g generator) space() string {
	if g.IntN(4) > 0 {
		return ""
	}
	return g.pick(" ", "\n", "\t", "\r", " \r\n\t ", "  ")
}

// value is a value that may nest so much deeper.
func (g generator) value(depth int) string {
	kinds := 10
	if depth == 0 {
		kinds = 6
	}
	switch g.IntN(kinds) {
	case 0:
		return g.pick("true", "false", "null")
	case 1, 2:
		return g.number()
	case 3, 4, 5:
		return g.string()
	case 6, 7:
		var b strings.Builder
		b.WriteString("[" + g.space())
		for i := range g.IntN(5) {
			if i > 0 {
				b.WriteString(g.space() + "," + g.space())
			}
			b.WriteString(g.value(depth - 1))
		}
		return b.String() + g.space() + "]"
	case 8:
		return g.object(depth-1, g.IntN(6))
	}
	// As deep as it may be, without much in it.
	n := 1 + g.IntN(depth)
	inner := g.value(0)
	for range n {
		inner = g.pick("["+inner+"]", `{"a":`+inner+`}`)
	}
	return inner
}

// object has n members. Their names differ, but for a few objects.
func (g generator) object(depth, n int) string {
	var b strings.Builder
	b.WriteString("{" + g.space())
	for i := range n {
		if i > 0 {
			b.WriteString(g.space() + "," + g.space())
		}
		name := g.string()
		if g.IntN(100) > 0 { // otherwise it may be there twice
			name = fmt.Sprintf(`"%d%s`, i, name[1:])
		}
		b.WriteString(name + g.space() + ":" + g.space() + g.value(depth))
	}
	return b.String() + g.space() + "}"
}

func (g generator) number() string {
	digits := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteByte(byte('0' + g.IntN(10)))
		}
		return b.String()
	}
	text := g.pick("", "-") + g.pick("0", "1"+digits(g.IntN(4)), "9"+digits(g.IntN(30)))
	if g.IntN(2) == 0 {
		text += "." + digits(1+g.IntN(20))
	}
	if g.IntN(3) == 0 {
		text += g.pick("e", "E") + g.pick("", "+", "-") + digits(1+g.IntN(4))
	}
	return text
}

func (g generator) string() string {
	var b strings.Builder
	b.WriteByte('"')
	for range g.IntN(8) {
		switch g.IntN(8) {
		case 0:
			b.WriteString(g.pick(`\"`, `\\`, `\/`, `\b`, `\f`, `\n`, `\r`, `\t`))
		case 1:
			fmt.Fprintf(&b, g.pick(`\u%04x`, `\u%04X`), g.IntN(0xd800))
		case 2:
			r := 0x10000 + g.IntN(0x100000)
			fmt.Fprintf(&b, g.pick(`\u%04x\u%04x`, `\u%04X\u%04x`), 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		case 3:
			b.WriteString(g.pick("é", "€", "😀", "\u007f", "\u0080", "\u2028", "\ufeff", "\uffff", "\U0010ffff", "\ue000"))
		case 4:
			if r := rune(g.IntN(0x110000)); r >= 0x80 && utf8.ValidRune(r) {
				b.WriteRune(r)
			}
		default:
			b.WriteString(g.pick("a", "Z", "0", " ", "<", "&", "'", "device_id", "signature", ":", ",", "{", "]"))
		}
	}
	return b.String() + `"`
}

// payload is a text that is mostly JSON.
func (g generator) payload() string {
	text := g.space() + g.value(g.IntN(66)) + g.space()
	if g.IntN(5) == 0 {
		text = g.mutated(text)
	}
	return text
}

// mutated is a text with a byte changed, a part cut out or a part doubled, and still UTF-8: the programs get texts.
func (g generator) mutated(text string) string {
	for range 20 {
		changed := g.mutatedOnce(text)
		if utf8.ValidString(changed) && changed != text {
			return changed
		}
	}
	return text + " x"
}

func (g generator) mutatedOnce(text string) string {
	if text == "" {
		return "x"
	}
	from := g.IntN(len(text))
	to := from + 1 + g.IntN(min(8, len(text)-from))
	switch g.IntN(4) {
	case 0: // another byte of those that mean something
		return text[:from] + g.pick(`"`, `\`, "{", "}", "[", "]", ",", ":", "0", "1", "9", "-", "+", ".", "e", "u", "a", " ", "\x00", "\x1f", "\x7f") + text[from+1:]
	case 1:
		return text[:from] + string([]byte{text[from] ^ byte(1<<g.IntN(8))}) + text[from+1:]
	case 2:
		return text[:from] + text[to:]
	}
	return text[:to] + text[from:]
}
