package deviceid

import (
	"strings"
	"testing"
)

func TestValid(t *testing.T) {
	for id, want := range map[string]bool{
		"":                      false,
		"a":                     true,
		"sensor_001":            true,
		"AZaz09._:-":            true,
		strings.Repeat("x", 64): true,
		strings.Repeat("x", 65): false,
		"a b":                   false,
		"a/b":                   false,
		"+":                     false,
		"#":                     false,
		"$SYS":                  false,
		"a\x00":                 false,
		"a\n":                   false,
		"é":                     false,
		"a\xff":                 false,
		"@":                     false, // the neighbours of the ranges
		"[":                     false,
		"`":                     false,
		"{":                     false,
		"/":                     false,
		";":                     false,
	} {
		if Valid(id) != want || Valid([]byte(id)) != want {
			t.Errorf("Valid(%q) is %t", id, !want)
		}
	}
}
