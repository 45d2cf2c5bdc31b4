package ascii

import "testing"

func TestVisible(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "!aZ09~": true, " ": false, "a b": false, "a\tb": false, "a\n": false, "\x00": false, "\x1f": false, "\x7f": false, "\x80": false, "é": false,
	} {
		if Visible(text) != want || Visible([]byte(text)) != want {
			t.Errorf("%q is visible: %v", text, !want)
		}
	}
}
