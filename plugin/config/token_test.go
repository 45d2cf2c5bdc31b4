package config

import (
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/secret"
)

func TestTokenWarning(t *testing.T) {
	long := strings.Repeat("x", MinTokenLength)
	for _, test := range []struct {
		http HTTP
		want bool
	}{
		{HTTP{}, false},
		{HTTP{Token: secret.Secret("x")}, false},
		{HTTP{Listen: "127.0.0.1:1", Token: secret.Secret("x")}, true},
		{HTTP{Listen: "127.0.0.1:1", Token: secret.Secret(long[1:])}, true},
		{HTTP{Listen: "127.0.0.1:1", Token: secret.Secret(long)}, false},
	} {
		got := test.http.TokenWarning()
		if (got != "") != test.want || strings.Contains(got, "xx") || test.want && !strings.Contains(got, "version "+ShortTokenEnds+" will refuse it") {
			t.Errorf("%d characters: %q", len(test.http.Token), got)
		}
	}
}
