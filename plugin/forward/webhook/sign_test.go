package webhook

import (
	"encoding/base64"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/cloudevent"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// A receiver with the reference library takes every request, and none with another secret, body, id or time.
func TestSignature(t *testing.T) {
	key := []byte("\x00\xff 24 to 64 bytes, any at all")
	base64Key := base64.StdEncoding.EncodeToString(key)
	for name, secret := range map[string]string{"prefixed": "whsec_" + base64Key, "raw": string(key)} {
		for _, batch := range []int{0, 3} {
			verifier, err := standardwebhooks.NewWebhook(base64Key)
			if err != nil {
				t.Fatal(err)
			}
			other, err := standardwebhooks.NewWebhookRaw([]byte(base64Key))
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			ids := map[string]int{}
			s := backend(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				if err := verifier.Verify(body, r.Header); err != nil {
					t.Errorf("%s, batch %d: %v: %v", name, batch, err, r.Header)
				}
				if other.Verify(body, r.Header) == nil || verifier.Verify(append(body, ' '), r.Header) == nil {
					t.Errorf("%s, batch %d: another secret or body verifies", name, batch)
				}
				for header, value := range map[string]string{"webhook-id": "x", "webhook-timestamp": "1"} {
					h := r.Header.Clone()
					h.Set(header, value)
					if verifier.VerifyIgnoringTimestamp(body, h) == nil {
						t.Errorf("%s, batch %d: another %s verifies", name, batch, header)
					}
				}
				id := r.Header.Get("webhook-id")
				if key := strings.Trim(r.Header.Get("Idempotency-Key"), `"`); strings.ReplaceAll(id, "%2E", ".") != key || strings.Contains(id, ".") {
					t.Errorf("%s, batch %d: webhook-id %s, key %s", name, batch, id, key)
				}
				if ids[id]++; ids[id] == 1 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			x := start(t, Config{URL: s.URL, Batch: batch, SigningSecret: []byte(secret)})
			for n := range 3 {
				x.enqueue(message("a.b:c", n+1))
			}
			x.drain()
			want := 3
			if batch > 0 {
				want = 1
			}
			if len(ids) != want {
				t.Errorf("%s, batch %d: ids %v, want %d", name, batch, ids, want)
			}
			for id, n := range ids {
				if n != 2 {
					t.Errorf("%s, batch %d: %d requests with id %s, want 2", name, batch, n, id)
				}
			}
			if log := x.log.String(); strings.Contains(log, "24 to 64") || strings.Contains(log, base64Key) {
				t.Errorf("the log tells the secret:\n%s", log)
			}
		}
	}
}

// The timestamp is that of the attempt, for a receiver refuses an old one.
func TestSignatureIsFresh(t *testing.T) {
	signer, err := newSigner([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	x := &exchange{}
	for _, at := range []int64{1727712000, 1727712600} {
		if err := x.sign(signer, []byte(`"a:1"`), []byte("{}"), time.Unix(at, 999)); err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		for name, value := range x.req.Header.All() {
			h.Set(string(name), string(value))
		}
		if got := h.Get("webhook-timestamp"); got != strconv.FormatInt(at, 10) {
			t.Errorf("timestamp %s, want %d", got, at)
		}
		if err := signer.VerifyIgnoringTimestamp([]byte("{}"), h); err != nil {
			t.Error(err)
		}
	}
}

func TestTraceparent(t *testing.T) {
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for s, want := range map[string]bool{
		good:                                   true,
		strings.Replace(good, "-01", "-ff", 1): true,
		"":                                     false,
		good[:54]:                              false,
		good + "-":                             false,
		good + "-x":                            false,
		"cc" + good[2:]:                        true,
		"cc" + good[2:] + "-what=ever":         true,
		"cc" + good[2:] + "x":                  false,
		"cc" + good[2:] + "-a\r\nb":            false,
		"cc" + good[2:] + "-a b":               false,
		"cc" + good[2:] + "-" + strings.Repeat("x", 201): false,
		"ff" + good[2:]:                             false,
		strings.ToUpper(good):                       false,
		strings.Replace(good, "4", "g", 1):          false,
		strings.Replace(good, "-", "_", 1):          false,
		"00-" + strings.Repeat("0", 32) + good[35:]: false,
		good[:36] + strings.Repeat("0", 16) + "-01": false,
		good[:53] + "0\n":                           false,
	} {
		if got := cloudevent.ValidTraceparent(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
	var mu sync.Mutex
	got := []string{}
	s := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, strings.Join(r.Header.Values("traceparent"), ","))
	})
	x := start(t, Config{URL: s.URL, Concurrency: 1})
	for n, trace := range []string{good, "", good + "\r\nEvil: 1", good} {
		m := message("a", n+1)
		m.Traceparent = trace
		x.enqueue(m)
	}
	x.drain()
	if strings.Join(got, ";") != good+";;;"+good {
		t.Error(got)
	}
}
