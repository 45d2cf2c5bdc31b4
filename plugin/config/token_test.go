package config

import (
	"strings"
	"testing"
)

func TestTokenWarning(t *testing.T) {
	long := strings.Repeat("x", MinTokenLength)
	for _, test := range []struct {
		http HTTP
		want bool
	}{
		{HTTP{}, false},
		{HTTP{Token: Secret("x")}, false},
		{HTTP{Listen: "127.0.0.1:1", Token: Secret("x")}, true},
		{HTTP{Listen: "127.0.0.1:1", Token: Secret(long[1:])}, true},
		{HTTP{Listen: "127.0.0.1:1", Token: Secret(long)}, false},
	} {
		got := test.http.TokenWarning()
		if (got != "") != test.want || strings.Contains(got, "xx") || test.want && !strings.Contains(got, "version "+ShortTokenEnds+" will refuse it") {
			t.Errorf("%d characters: %q", len(test.http.Token), got)
		}
	}
}
