package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// printable returns text as it is where a terminal shows it as it is, on one line, else quoted as in Go.
func printable(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return text
	}
	return strconv.Quote(text)
}

// quoted returns a word as it is, and quotes what is not one: nothing, a blank, a quotation mark, what a terminal does not
// show as it is.
func quoted(text string) string {
	if text == "" || strings.ContainsAny(text, " \"`\\") {
		return strconv.Quote(text)
	}
	return printable(text)
}

// terminalJSON is v as JSON on one line, in which what a terminal might obey is escaped: JSON itself allows DEL, the
// control characters from U+0080 on, and those that turn the direction of writing.
func terminalJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	line := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if !bytes.ContainsFunc(line, hidden) {
		return line, nil
	}
	var escaped []byte
	for _, r := range string(line) {
		switch {
		case !hidden(r):
			escaped = utf8.AppendRune(escaped, r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, high, low)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		}
	}
	return escaped, nil
}

func hidden(r rune) bool { return !unicode.IsPrint(r) }

// counted is "1 letter", "2 letters".
func counted(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// shellQuote writes s so that a POSIX shell takes it for one word.
func shellQuote(s string) string {
	special := func(r rune) bool {
		return (r >= utf8.RuneSelf || !unicode.IsLetter(r) && !unicode.IsDigit(r)) && !strings.ContainsRune("/._-:@%,=", r)
	}
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
