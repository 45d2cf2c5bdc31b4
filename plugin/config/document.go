package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
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
// wrong; what no reader asked for is unknown.
type document struct {
	file string // as the user named it
	dir  string // absolute; what relative paths are relative to

	tree    map[string]any
	entries []entry

	known    []string // the keys asked for by a reader
	files    []File   // that were read
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

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

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
		if !bareKey.MatchString(part) {
			written[i] = quote(part)
		}
	}
	return strings.Join(written, ".") + rest
}

var (
	assignment = regexp.MustCompile(`^\s*([A-Za-z0-9_.-]{1,64})\s*=`)
	header     = regexp.MustCompile(`^\s*\[+\s*([A-Za-z0-9_.-]{1,64})\s*\]`)
)

// keyAt guesses which key the given line of a document that does not parse is
// about; "" if that cannot be told.
func keyAt(source []byte, line int) string {
	lines := bytes.Split(source, []byte("\n"))
	if line < 1 || line > len(lines) {
		return ""
	}
	if m := header.FindSubmatch(lines[line-1]); m != nil {
		return string(m[1])
	}
	m := assignment.FindSubmatch(lines[line-1])
	if m == nil {
		return ""
	}
	for _, above := range slices.Backward(lines[:line-1]) {
		if h := header.FindSubmatch(above); h != nil {
			return string(h[1]) + "." + string(m[1])
		}
	}
	return string(m[1])
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

// value is lookup for the readers: it makes key known.
func (d *document) value(key string) (any, bool) {
	if !slices.Contains(d.known, key) {
		d.known = append(d.known, key)
	}
	return d.lookup(key)
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

// refuseUnknown reports every key and section that no reader asked for.
func (d *document) refuseUnknown() {
	var sections []string
	for _, key := range d.known {
		if section, _, nested := strings.Cut(key, "."); nested && !slices.Contains(sections, section) {
			sections = append(sections, section)
		}
	}
	said := map[string]bool{}
	for _, e := range d.entries {
		section, _, nested := strings.Cut(e.key, ".")
		switch {
		case slices.Contains(d.known, e.key) || said[e.key]:
		case slices.Contains(sections, e.key):
			if e.kind != unstable.Table && e.kind != unstable.InlineTable {
				said[e.key] = true
				d.problemAt(e.line, e.key, "is a section; write [%s] on a line of its own and its settings below", e.key)
			}
		case nested && said[section]:
			// One word about the section is enough.
		case !nested && (e.kind == unstable.Table || e.kind == unstable.ArrayTable || e.kind == unstable.InlineTable):
			said[e.key] = true
			d.problemAt(e.line, e.key, "unknown section; %s", didYouMean(e.key, sections))
		default:
			said[e.key] = true
			d.problemAt(e.line, e.key, "unknown key; %s", didYouMean(e.key, d.known))
		}
	}
}

// didYouMean says what to do about an unknown key.
func didYouMean(key string, known []string) string {
	nearest, best := "", 4
	for _, k := range known {
		distance := editDistance(key, k)
		// The right name in the wrong section.
		_, name, _ := strings.Cut(k, ".")
		if own := key[strings.LastIndexByte(key, '.')+1:]; name != "" {
			distance = min(distance, 1+editDistance(own, name))
		}
		if distance < best && distance <= len(key)/2 {
			nearest, best = k, distance
		}
	}
	if nearest == "" {
		return "remove it"
	}
	return "did you mean " + nearest + "?"
}

// editDistance is the Levenshtein distance of two short strings; of a long one
// it is only said that it is large.
func editDistance(a, b string) int {
	const long = 100
	if len(a) > long || len(b) > long {
		return long
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitution, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// quote quotes what a user wrote, cut to what fits a log line.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
