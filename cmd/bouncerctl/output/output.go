// Package output writes text so that a terminal or a shell takes it for what it is.
package output

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable returns text as it is where a terminal shows it as it is, on one line, else quoted as in Go.
func Printable(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return text
	}
	return strconv.Quote(text)
}

// Quoted returns a word as it is, and quotes what is not one: nothing, a blank, a quotation mark, what a terminal does not
// show as it is.
func Quoted(text string) string {
	if text == "" || strings.ContainsAny(text, " \"`\\") {
		return strconv.Quote(text)
	}
	return Printable(text)
}

// Counted is "1 letter", "2 letters".
func Counted(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
