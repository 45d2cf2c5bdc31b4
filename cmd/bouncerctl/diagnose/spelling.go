package diagnose

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/go-json-experiment/json/jsontext"
)

// A spelling is how a program writes JSON. The zero value writes what was sent, without blanks.
type spelling struct {
	comma, colon string                             // "" stands for "," and ":"
	indent       string                             // of each level; "": everything in one line
	order        func(names []string, a, b int) int // of members; nil: as sent
	number, text func(raw string) string            // nil: as sent
}

func (s spelling) write(n node) string {
	var b strings.Builder
	s.append(&b, n, 0)
	return b.String()
}

func (s spelling) append(b *strings.Builder, n node, level int) {
	spell := func(how func(string) string, raw string) {
		if how != nil {
			raw = how(raw)
		}
		b.WriteString(raw)
	}
	switch n.kind {
	case '"':
		spell(s.text, n.raw)
		return
	case '0':
		spell(s.number, n.raw)
		return
	case '{', '[':
	default:
		b.WriteString(n.raw)
		return
	}
	at := make([]int, len(n.kids))
	for i := range at {
		at[i] = i
	}
	if n.kind == '{' && s.order != nil {
		slices.SortStableFunc(at, func(x, y int) int { return s.order(n.names, x, y) })
	}
	line := func(level int) {
		if s.indent != "" && len(n.kids) > 0 {
			b.WriteByte('\n')
			b.WriteString(strings.Repeat(s.indent, level))
		}
	}
	b.WriteByte(n.kind)
	for i, k := range at {
		if i > 0 {
			b.WriteString(orElse(s.comma, ","))
		}
		line(level + 1)
		if n.kind == '{' {
			spell(s.text, n.names[k])
			b.WriteString(orElse(s.colon, ":"))
		}
		s.append(b, n.kids[k], level+1)
	}
	line(level)
	b.WriteByte(n.kind + 2)
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// unquoted returns the characters of a JSON string.
func unquoted(raw string) string {
	var text string
	_ = json.Unmarshal([]byte(raw), &text)
	return text
}

// Orders of an object's members.
func byName(names []string, a, b int) int {
	return strings.Compare(unquoted(names[a]), unquoted(names[b]))
}

func byUTF16(names []string, a, b int) int {
	return slices.Compare(utf16.Encode([]rune(unquoted(names[a]))), utf16.Encode([]rune(unquoted(names[b]))))
}

func backwards(names []string, a, b int) int { return byName(names, b, a) }

func asSentBackwards(_ []string, a, b int) int { return b - a }

func byLowerCase(names []string, a, b int) int {
	return strings.Compare(strings.ToLower(unquoted(names[a])), strings.ToLower(unquoted(names[b])))
}

// byNumber sorts names that are numbers as numbers, as json.dumps(sort_keys=True) does with keys that are.
func byNumber(names []string, a, b int) int {
	x, errX := strconv.ParseFloat(unquoted(names[a]), 64)
	y, errY := strconv.ParseFloat(unquoted(names[b]), 64)
	switch {
	case errX != nil || errY != nil:
		return byName(names, a, b)
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// Spellings of strings.

// ascii writes what is not ASCII as \uXXXX, as Python's json.dumps does by default.
func ascii(digits string) func(string) string {
	return func(raw string) string {
		var b strings.Builder
		for _, c := range plainText(raw) {
			if c < 0x80 {
				b.WriteRune(c)
				continue
			}
			for _, u := range utf16.Encode([]rune{c}) {
				fmt.Fprintf(&b, `\u`+digits, u)
			}
		}
		return b.String()
	}
}

// plainText escapes nothing but what has to be.
func plainText(raw string) string {
	text, err := jsontext.AppendQuote(nil, unquoted(raw))
	if err != nil {
		return raw
	}
	return string(text)
}

// forHTML escapes what Go's encoding/json does by default.
func forHTML(raw string) string {
	return strings.NewReplacer("<", `\u003c`, ">", `\u003e`, "&", `\u0026`).Replace(plainText(raw))
}

// slashes escapes what PHP's json_encode does by default.
func slashes(raw string) string { return strings.ReplaceAll(ascii("%04x")(raw), "/", `\/`) }

// withoutNulls leaves out the members of an object that are null.
func withoutNulls(n node) node {
	if n.kind != '{' {
		return n
	}
	filled := node{kind: '{'}
	for i, kid := range n.kids {
		if kid.kind != 'n' {
			filled.names, filled.kids = append(filled.names, n.names[i]), append(filled.kids, withoutNulls(kid))
		}
	}
	return filled
}

// python writes a value as Python's str() does.
func python(n node) string {
	s := spelling{comma: ", ", colon: ": ", text: func(raw string) string { return "'" + unquoted(raw) + "'" }}
	words := map[string]string{"true": "True", "false": "False", "null": "None"}
	var translate func(n node) node
	translate = func(n node) node {
		if word, any := words[n.raw]; any {
			n.raw = word
		}
		kids := make([]node, len(n.kids))
		for i := range n.kids {
			kids[i] = translate(n.kids[i])
		}
		n.kids = kids
		return n
	}
	return s.write(translate(n))
}

// permutations yields every order of n things, n up to 6; of more none.
func permutations(n int, yield func(order []int) bool) {
	if n > 6 {
		return
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	var permute func(at int) bool
	permute = func(at int) bool {
		if at == n {
			return yield(order)
		}
		for i := at; i < n; i++ {
			order[at], order[i] = order[i], order[at]
			more := permute(at + 1)
			order[at], order[i] = order[i], order[at]
			if !more {
				return false
			}
		}
		return true
	}
	permute(0)
}
