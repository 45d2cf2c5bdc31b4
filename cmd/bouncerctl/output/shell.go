package output

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Shell writes s so that a POSIX shell takes it for one word.
func Shell(s string) string {
	special := func(r rune) bool {
		return (r >= utf8.RuneSelf || !unicode.IsLetter(r) && !unicode.IsDigit(r)) && !strings.ContainsRune("/._-:@%,=", r)
	}
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
