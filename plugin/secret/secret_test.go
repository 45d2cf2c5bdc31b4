package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNothingPrintsIt(t *testing.T) {
	s := Secret("top")
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "secret", s, "in", struct{ S Secret }{s})
	encoded, err := json.Marshal(map[string]Secret{"s": s})
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{logged.String(), string(encoded), s.String()}
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, s), fmt.Sprintf(verb, struct{ S Secret }{s}), fmt.Sprintf(verb, []Secret{s}))
	}
	for _, text := range texts {
		if !strings.Contains(text, "[redacted]") || strings.Contains(text, "top") || strings.Contains(text, "746f70") || strings.Contains(text, "116") {
			t.Errorf("%s", text)
		}
	}
}

func TestEqual(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{{"a", "a", true}, {"a", "b", false}, {"a", "ab", false}, {"", "", true}, {"", "a", false}} {
		if got := Secret(test.a).Equal(Secret(test.b)); got != test.want {
			t.Errorf("%q and %q: %v", test.a, test.b, got)
		}
	}
}
