package webhook

import (
	"strings"
	"testing"
	"time"
)

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                                0,
		"0":                               0,
		"7":                               7 * time.Second,
		" 120 ":                           2 * time.Minute,
		"3600":                            time.Hour,
		"3601":                            time.Hour,
		"99999999999999999999999999":      time.Hour,
		"-1":                              0,
		"1.5":                             0,
		"soon":                            0,
		"Sun, 22 Nov 2026 12:00:30 GMT":   30 * time.Second,
		"Sunday, 22-Nov-26 12:00:30 GMT":  30 * time.Second,
		"Sun Nov 22 12:00:30 2026":        30 * time.Second,
		"Sun, 22 Nov 2026 11:59:59 GMT":   0,
		"Mon, 23 Nov 2026 12:00:00 GMT":   time.Hour,
		"Sun, 22 Nov 2026 12:00:30 +0100": 0,
	} {
		if got := parseRetryAfter(value, now); got != want {
			t.Errorf("parseRetryAfter(%q) = %v, want %v", value, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for want, cfg := range map[string]Config{
		`backend.url: "" does not begin`:       {},
		"backend: version \"1\\r\\n\" cannot":  {URL: "http://h/", Version: "1\r\n"},
		"backend: the bearer token holds a":    {URL: "http://h/", BearerToken: []byte("geheim\n")},
		"backend: timeout and concurrency":     {URL: "http://h/", Concurrency: -1},
		"backend: fatal status 200 is not 300": {URL: "http://h/", FatalStatuses: []int{401, 200}},
		`backend: url "http://h/{device_id}": with batch, messages of many devices go in one request: remove {device_id}, or batch`: {URL: "http://h/{device_id}", Batch: 2},
		`backend: url "http://h/?d={device_id}": with batch,`:                                                                       {URL: "http://h/?d={device_id}", Batch: 2},
		"backend: the signing secret begins with whsk_, a private key":                                                              {URL: "http://h/", SigningSecret: []byte("whsk_geheim")},
		"backend: the signing secret has no key behind whsec_":                                                                      {URL: "http://h/", SigningSecret: []byte("whsec_")},
		"backend: the signing secret is not base64 behind whsec_; remove the":                                                       {URL: "http://h/", SigningSecret: []byte("whsec_geheim!")},
	} {
		_, err := New(cfg)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s...", err, want)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%v: tells the token", err)
		}
	}
}
