package output

import (
	"testing"
)

func TestShell(t *testing.T) {
	for s, want := range map[string]string{
		"":           "''",
		"a/B-1_.:@%": "a/B-1_.:@%",
		"a b":        "'a b'",
		"it's":       `'it'\''s'`,
		"$(x)":       "'$(x)'",
		"ä":          "'ä'",
		"~":          "'~'",
	} {
		if got := Shell(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}
