package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/secret"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	token := secret.Secret("s3cret")
	c := Config{Backend: Backend{BearerToken: token}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c", "% x", "%10s", "%T%v"} {
		fmt.Fprintf(&out, verb+"\n", token)
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", &c)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", "secret", token, "config", c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "secret", token, "config", c)
	if err := json.NewEncoder(&out).Encode(map[string]any{"secret": token, "backend": c.Backend.BearerToken}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&out, token, errors.New("x"), []secret.Secret{token})
	base64 := "czNjcmV0"
	for _, leak := range []string{"s3cret", "733363726574", "115 51 99", "73 33 63", base64} {
		if strings.Contains(strings.ToLower(out.String()), leak) {
			t.Errorf("%q is in:\n%s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), "[redacted]") {
		t.Error("nothing says [redacted]")
	}
}
