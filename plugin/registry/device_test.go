package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	secret := Secret("hush")
	d := newDevice([]byte("a"), secret, false)
	var printed strings.Builder
	for _, v := range []any{secret, &secret, d, *d, d.Secrets, map[string]Secret{"a": secret}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%c", "%b", "%o", "%T", "%10.3s"} {
			_, _ = fmt.Fprintf(&printed, verb+"\n", v)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		printed.Write(text)
		for _, h := range []slog.Handler{slog.NewTextHandler(&printed, nil), slog.NewJSONHandler(&printed, nil)} {
			slog.New(h).Info("", "value", v)
		}
	}
	printed.WriteString(secret.String() + secret.GoString() + fmt.Sprint(error(fmt.Errorf("%w: %v", ErrExists, secret))))
	for _, form := range []string{"hush", "68757368", "68 75 73 68", "104 117", "aHVzaA", "0x68", "1101000", "150 165"} {
		if strings.Contains(strings.ToLower(printed.String()), strings.ToLower(form)) {
			t.Errorf("%q is in what was printed", form)
		}
	}
	if n := strings.Count(printed.String(), "[redacted]"); n < 90 {
		t.Errorf("%d redactions", n)
	}
	if !bytes.Equal(secret, []byte("hush")) {
		t.Error("the secret itself changed")
	}
}
