package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxProblems is how many problems an Error prints.
const maxProblems = 20

// Problem is one thing wrong with a bouncer.toml.
type Problem struct {
	File string // as given to Load
	Line int    // from 1
	Key  string // dotted, such as "publish.tolerance"; "" if no key can be named
	Text string // what is wrong, and what to do
}

// String returns "FILE:LINE: key: text".
func (p Problem) String() string {
	if p.Key == "" {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Key, p.Text)
}

// Error is the problems of a bouncer.toml in the order of its lines, at least
// one.
type Error struct {
	Problems []Problem
}

// Error returns the problems, one a line.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i == maxProblems {
			fmt.Fprintf(&b, "\n%s: %d more problems", p.File, len(e.Problems)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// document is a bouncer.toml that is syntactically sound. Its typed readers
// (duration, size, url ...) each take one setting out of it and collect what is
// wrong.
type document struct {
	file string // as the user named it
	dir  string // absolute; what relative paths are relative to

	tree    map[string]any
	entries []entry

	files    []File // that were read
	problems []Problem
}

// entry is a place where the document mentions a key: with a value, or as a
// header.
type entry struct {
	key   string
	line  int
	depth int // the number of the key's parts
	kind  unstable.Kind
}

// newDocument parses source. A syntax error, a key set twice and the like are
// an *Error.
func newDocument(file, dir string, source []byte) (*document, error) {
	d := &document{file: file, dir: dir}
	if err := toml.Unmarshal(source, &d.tree); err != nil {
		decodeErr, ok := errors.AsType[*toml.DecodeError](err)
		if !ok {
			return nil, fmt.Errorf("%s: not valid TOML: %w", file, err)
		}
		line, _ := decodeErr.Position()
		return nil, &Error{[]Problem{{
			File: file,
			Line: line,
			Key:  keyAt(source, line),
			Text: fmt.Sprintf("not valid TOML: %s; correct the line (text, durations and paths stand in quotes, each key once)",
				strings.TrimPrefix(decodeErr.Error(), "toml: ")),
		}}}
	}
	if err := d.index(source); err != nil {
		return nil, fmt.Errorf("%s: not valid TOML: %w", file, err)
	}
	return d, nil
}

// index fills d.entries, which the tree cannot give: it has no positions.
func (d *document) index(source []byte) error {
	var p unstable.Parser
	p.Reset(source)

	line, offset := 1, uint32(0)
	add := func(parts []string, at unstable.Range, kind unstable.Kind) {
		line += bytes.Count(source[offset:at.Offset], []byte("\n"))
		offset = at.Offset
		d.entries = append(d.entries, entry{dotted(parts), line, len(parts), kind})
	}
	parts := func(prefix []string, key unstable.Iterator) (all []string, at unstable.Range) {
		all = prefix
		for key.Next() {
			if at.Length == 0 {
				at = key.Node().Raw
			}
			all = append(all, string(key.Node().Data))
		}
		return all, at
	}
	var keyValue func(prefix []string, n *unstable.Node)
	keyValue = func(prefix []string, n *unstable.Node) {
		key, at := parts(prefix, n.Key())
		add(key, at, n.Value().Kind)
		if n.Value().Kind != unstable.InlineTable {
			return
		}
		for it := n.Value().Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				keyValue(key, it.Node())
			}
		}
	}

	var section []string
	for p.NextExpression() {
		n := p.Expression()
		if n.Kind == unstable.KeyValue {
			keyValue(section, n)
			continue
		}
		var at unstable.Range
		section, at = parts(nil, n.Key())
		add(section, at, n.Kind)
	}
	return p.Error()
}

// maxName is the longest key of a section that is shown in full.
const maxName = 64

// nameLength returns how many bytes at the start of s can be part of a key without quotes; dots too, if dots is true.
func nameLength(s string, dots bool) int {
	for i, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || dots && c == '.') {
			return i
		}
	}
	return len(s)
}

// dotted joins the parts of a key as TOML writes them, so that the one part
// "a.b" is not taken for the two parts a and b. What is too long to be a
// setting is cut.
func dotted(parts []string) string {
	const most = 4
	rest := ""
	if len(parts) > most {
		parts, rest = parts[:most], "..."
	}
	written := make([]string, len(parts))
	for i, part := range parts {
		written[i] = part
		if n := nameLength(part, false); n == 0 || n < len(part) || n > maxName {
			written[i] = quote(part)
		}
	}
	return strings.Join(written, ".") + rest
}

// keyAt guesses which key the given line of a document that does not parse is
// about; "" if that cannot be told.
func keyAt(source []byte, line int) string {
	lines := strings.Split(string(source), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	if section := header(lines[line-1]); section != "" {
		return section
	}
	key := assignment(lines[line-1])
	if key == "" {
		return ""
	}
	for _, above := range slices.Backward(lines[:line-1]) {
		if section := header(above); section != "" {
			return section + "." + key
		}
	}
	return key
}

// assignment returns the key before the "=" of a line; "" if there is none.
func assignment(line string) string { return nameBefore(line, "=") }

// header returns the section of a line such as "[section]"; "" if it is none.
func header(line string) string {
	line = strings.TrimLeft(line, space)
	inside := strings.TrimLeft(line, "[")
	if inside == line {
		return ""
	}
	return nameBefore(inside, "]")
}

const space = " \t\r\f"

// nameBefore returns the name with which a line begins, if end follows it; else "".
func nameBefore(line, end string) string {
	line = strings.TrimLeft(line, space)
	n := nameLength(line, true)
	if n > maxName || !strings.HasPrefix(strings.TrimLeft(line[n:], space), end) {
		return ""
	}
	return line[:n]
}

// lookup returns the value of a key of one or two parts.
func (d *document) lookup(key string) (any, bool) {
	section, name, nested := strings.Cut(key, ".")
	if !nested {
		v, ok := d.tree[key]
		return v, ok
	}
	table, ok := d.tree[section].(map[string]any)
	if !ok {
		return nil, false
	}
	v, ok := table[name]
	return v, ok
}

// isSet tells whether key has a value other than "".
func (d *document) isSet(key string) bool {
	v, ok := d.lookup(key)
	return ok && v != ""
}

// problem records what is wrong with key and what to do about it, at the line
// of the key.
func (d *document) problem(key, format string, args ...any) {
	line := 1
	if i := slices.IndexFunc(d.entries, func(e entry) bool { return e.key == key }); i >= 0 {
		line = d.entries[i].line
	}
	d.problemAt(line, key, format, args...)
}

func (d *document) problemAt(line int, key, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, line, key, fmt.Sprintf(format, args...)})
}

// err returns the problems as an *Error, or nil.
func (d *document) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return &Error{d.problems}
}

// quote quotes what a user wrote, cut to what fits a log line.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
