package envelope

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"slices"
	"unicode/utf8"
)

// A scanner reads JSON strictly (RFC 8259 with the demands of RFC 7493: valid UTF-8, no unpaired surrogate escape, no
// name twice in an object) and writes the canonical form of the value that it reads, in one pass and without
// allocation. The tests hold it against jsontext: what the one accepts the other accepts, with the same canonical form.
type scanner struct {
	text []byte
	at   int // of the next byte of text

	canonical []byte
	members   []member // of the objects being read, the innermost one's last
	plain     []byte   // the names that have escapes, with the escapes undone
	reordered []byte
	hashes    []uint64
	slots     []int32

	// sortLater leaves objects of more than fewMembers as they are, sets unsorted, and so takes time in proportion to
	// the text alone.
	sortLater, unsorted bool
}

// fewMembers is how many members it costs nothing worth mentioning to sort.
const fewMembers = 16

// A member is one of an object's members: where it stands in canonical, and where its name stands, without quotes and
// escapes, in plain if it has escapes and else in canonical.
type member struct {
	start              int // of the name's opening quote
	end                int // behind the value
	nameStart, nameEnd int
	escaped            bool
}

// reset begins a new text.
func (s *scanner) reset(text []byte) {
	s.text, s.at = text, 0
	s.canonical, s.members, s.plain = s.canonical[:0], s.members[:0], s.plain[:0]
	s.unsorted = false
}

// space passes over white space and returns the byte behind it, 0 at the end of the text. A NUL in the text is no part
// of JSON either.
func (s *scanner) space() byte {
	for ; s.at < len(s.text); s.at++ {
		if c := s.text[s.at]; c > ' ' || c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c
		}
	}
	return 0
}

// take passes over white space and then over c, and reports whether it was there.
func (s *scanner) take(c byte) bool {
	if s.space() != c || s.at == len(s.text) {
		return false
	}
	s.at++
	return true
}

// value reads one value, white space before it allowed, and appends its canonical form. depth is how many levels of
// objects and arrays it may still open. The error is ErrSyntax or ErrDepth.
func (s *scanner) value(depth int) error {
	start := 0
	switch c := s.space(); c {
	case '{':
		return s.object(depth)
	case '[':
		return s.array(depth)
	case '"':
		start = s.at
		if _, ok := s.string(); !ok {
			return ErrSyntax
		}
	case 't':
		start = s.at
		if !s.literal("true") {
			return ErrSyntax
		}
	case 'f':
		start = s.at
		if !s.literal("false") {
			return ErrSyntax
		}
	case 'n':
		start = s.at
		if !s.literal("null") {
			return ErrSyntax
		}
	default:
		start = s.at
		if !s.number() {
			return ErrSyntax
		}
	}
	s.canonical = append(s.canonical, s.text[start:s.at]...)
	return nil
}

func (s *scanner) literal(word string) bool {
	if !bytes.HasPrefix(s.text[s.at:], []byte(word)) {
		return false
	}
	s.at += len(word)
	return true
}

// number reads -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?
func (s *scanner) number() bool {
	if s.peek() == '-' {
		s.at++
	}
	if s.peek() == '0' {
		s.at++
	} else if !s.digits() {
		return false
	}
	if s.peek() == '.' {
		s.at++
		if !s.digits() {
			return false
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.at++
		if c := s.peek(); c == '+' || c == '-' {
			s.at++
		}
		return s.digits()
	}
	return true
}

// digits passes over one or more digits.
func (s *scanner) digits() bool {
	start := s.at
	for s.at < len(s.text) && s.text[s.at]-'0' <= 9 {
		s.at++
	}
	return s.at > start
}

// peek returns the next byte, 0 at the end of the text.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

// string reads a string, its quotes included, and reports whether it has an escape, and whether it is a string.
func (s *scanner) string() (escaped, ok bool) {
	text := s.text
	for i := s.at + 1; ; {
		if i = skipOrdinary(text, i); i == len(text) {
			return false, false
		}
		switch c := text[i]; {
		case c == '"':
			s.at = i + 1
			return escaped, true
		case c == '\\':
			_, n := unescape(text[i:])
			if n == 0 {
				return false, false
			}
			escaped = true
			i += n
		case c < ' ':
			return false, false
		default:
			r, n := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && n == 1 {
				return false, false
			}
			i += n
		}
	}
}

// skipOrdinary returns the place of the first byte from i on that does not stand for itself in a string: a quote, a
// backslash, a control character or a byte above ASCII; len(text) if there is none. It looks at eight bytes at a time.
func skipOrdinary(text []byte, i int) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	for ; i+8 <= len(text); i += 8 {
		// The highest bit of each byte of special says whether the byte is of these; a borrow can make a byte above the
		// first such one wrong, but not the first.
		x := binary.LittleEndian.Uint64(text[i:])
		quote, backslash := x^(ones*'"'), x^(ones*'\\')
		special := (x | (x-ones*' ')&^x | (quote-ones)&^quote | (backslash-ones)&^backslash) & highs
		if special != 0 {
			return i + bits.TrailingZeros64(special)/8
		}
	}
	for ; i < len(text); i++ {
		if c := text[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return i
}

// plainString passes over white space and a string without escapes, and returns what stands between the quotes. The
// error for anything else is otherwise.
func (s *scanner) plainString(otherwise error) ([]byte, error) {
	if s.space() != '"' {
		return nil, otherwise
	}
	at := s.at
	if escaped, ok := s.string(); !ok {
		return nil, ErrSyntax
	} else if escaped {
		return nil, otherwise
	}
	return s.text[at+1 : s.at-1], nil
}

// unescape reads the escape sequence that text begins with, a surrogate pair being one, and returns the character and
// how many bytes the escape takes; 0 if it is none.
func unescape(text []byte) (rune, int) {
	if len(text) < 2 {
		return 0, 0
	}
	switch c := text[1]; c {
	case '"', '\\', '/':
		return rune(c), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	}
	high, ok := unescapeUnit(text)
	if !ok {
		return 0, 0
	}
	switch {
	case high < 0xd800 || high > 0xdfff:
		return high, 6
	case high >= 0xdc00:
		return 0, 0
	}
	low, ok := unescapeUnit(text[6:])
	if !ok || low < 0xdc00 || low > 0xdfff {
		return 0, 0
	}
	return (high-0xd800)<<10 + (low - 0xdc00) + 0x10000, 12
}

// unescapeUnit reads a \u and four hexadecimal digits.
func unescapeUnit(text []byte) (unit rune, ok bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	for _, c := range text[2:6] {
		digit := hexDigits[c]
		if digit > 15 {
			return 0, false
		}
		unit = unit<<4 | rune(digit)
	}
	return unit, true
}

// array reads an array.
func (s *scanner) array(depth int) error {
	if depth == 0 {
		return ErrDepth
	}
	s.at++
	s.canonical = append(s.canonical, '[')
	if s.take(']') {
		s.canonical = append(s.canonical, ']')
		return nil
	}
	for {
		if err := s.value(depth - 1); err != nil {
			return err
		}
		if s.take(']') {
			s.canonical = append(s.canonical, ']')
			return nil
		}
		if !s.take(',') {
			return ErrSyntax
		}
		s.canonical = append(s.canonical, ',')
	}
}

// object reads an object and leaves its members sorted by name in canonical.
func (s *scanner) object(depth int) error {
	if depth == 0 {
		return ErrDepth
	}
	s.at++
	open := len(s.canonical)
	s.canonical = append(s.canonical, '{')
	if s.take('}') {
		s.canonical = append(s.canonical, '}')
		return nil
	}
	first := len(s.members)
	sorted := true
	for {
		if s.space() != '"' {
			return ErrSyntax
		}
		nameAt := s.at
		escaped, ok := s.string()
		if !ok {
			return ErrSyntax
		}
		m := member{start: len(s.canonical), escaped: escaped}
		m.nameStart, m.nameEnd = m.start+1, m.start+s.at-nameAt-1
		s.canonical = append(s.canonical, s.text[nameAt:s.at]...)
		if escaped {
			m.nameStart = len(s.plain)
			s.appendPlain(s.text[nameAt+1 : s.at-1])
			m.nameEnd = len(s.plain)
		}
		if !s.take(':') {
			return ErrSyntax
		}
		s.canonical = append(s.canonical, ':')
		if err := s.value(depth - 1); err != nil {
			return err
		}
		m.end = len(s.canonical)
		s.members = append(s.members, m)
		if n := len(s.members); sorted && n > first+1 {
			order := s.compareNames(s.members[n-2], m)
			if order == 0 {
				return ErrSyntax
			}
			sorted = order < 0
		}
		if s.take('}') {
			break
		}
		if !s.take(',') {
			return ErrSyntax
		}
		s.canonical = append(s.canonical, ',')
	}
	if members := s.members[first:]; !sorted {
		if s.sortLater && len(members) > fewMembers {
			s.unsorted = true
			if !s.distinctNames(members) {
				return ErrSyntax
			}
		} else if !s.sortMembers(open, members) {
			return ErrSyntax
		}
	}
	s.members = s.members[:first]
	s.canonical = append(s.canonical, '}')
	return nil
}

// sortMembers puts the members of the object whose brace is canonical[open] in order, and reports whether their names
// differ from one another.
func (s *scanner) sortMembers(open int, members []member) bool {
	if len(members) <= fewMembers {
		if !s.insertionSort(members) {
			return false
		}
	} else {
		slices.SortFunc(members, s.compareNames)
		for i := range members[1:] {
			if s.compareNames(members[i], members[i+1]) == 0 {
				return false
			}
		}
	}
	s.reordered = s.reordered[:0]
	for _, m := range members {
		s.reordered = append(s.reordered, ',')
		s.reordered = append(s.reordered, s.canonical[m.start:m.end]...)
	}
	copy(s.canonical[open+1:], s.reordered[1:])
	return true
}

// insertionSort is for a few members, where slices.SortFunc would take twice as long. It stops at a name that comes
// twice, and reports whether there was none.
func (s *scanner) insertionSort(members []member) bool {
	for i := 1; i < len(members); i++ {
		m := members[i]
		name := s.name(m)
		j := i
		for ; j > 0; j-- {
			order := compareUTF16(s.name(members[j-1]), name)
			if order == 0 {
				return false
			}
			if order < 0 {
				break
			}
			members[j] = members[j-1]
		}
		members[j] = m
	}
	return true
}

// nameSeed makes the hashes of names: a device must not be able to choose names whose hashes are the same.
var nameSeed = maphash.MakeSeed()

// distinctNames reports whether the members' names differ from one another.
func (s *scanner) distinctNames(members []member) bool {
	size := 1 << bits.Len(uint(2*len(members)))
	s.slots = slices.Grow(s.slots[:0], size)[:size]
	clear(s.slots)
	s.hashes = s.hashes[:0]
	for i, m := range members {
		hash := maphash.Bytes(nameSeed, s.name(m))
		s.hashes = append(s.hashes, hash)
		slot := int(hash) & (size - 1)
		for ; s.slots[slot] != 0; slot = (slot + 1) & (size - 1) {
			if other := s.slots[slot] - 1; s.hashes[other] == hash && s.compareNames(members[other], m) == 0 {
				return false
			}
		}
		s.slots[slot] = int32(i + 1)
	}
	return true
}

// compareNames orders two members by name: by UTF-16 code units, escapes undone (RFC 8785, section 3.2.3).
func (s *scanner) compareNames(a, b member) int { return compareUTF16(s.name(a), s.name(b)) }

// name returns a member's name without quotes and escapes.
func (s *scanner) name(m member) []byte {
	if m.escaped {
		return s.plain[m.nameStart:m.nameEnd]
	}
	return s.canonical[m.nameStart:m.nameEnd]
}

// appendPlain appends a name to plain with its escapes undone.
func (s *scanner) appendPlain(name []byte) {
	for i := 0; i < len(name); {
		if name[i] != '\\' {
			s.plain = append(s.plain, name[i])
			i++
			continue
		}
		r, n := unescape(name[i:])
		s.plain = utf8.AppendRune(s.plain, r)
		i += n
	}
}

// compareUTF16 compares two texts in UTF-8 as if they were in UTF-16. The orders differ where one has a character above
// U+FFFF, whose surrogates are D800 to DFFF, and the other one from U+E000 to U+FFFF.
func compareUTF16(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if (x >= 0xf0) != (y >= 0xf0) && x >= 0xee && y >= 0xee {
			return int(y) - int(x)
		}
		return int(x) - int(y)
	}
	return len(a) - len(b)
}

// hexDigits maps the characters 0-9, a-f and A-F to their values, and every other to 255.
var hexDigits = func() (table [256]byte) {
	for c := range table {
		table[c] = 255
	}
	for value, c := range []byte("0123456789abcdef") {
		table[c] = byte(value)
		table[bytes.ToUpper([]byte{c})[0]] = byte(value)
	}
	return table
}()
