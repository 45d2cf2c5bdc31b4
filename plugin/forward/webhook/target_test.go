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

func TestParseTarget(t *testing.T) {
	for raw, want := range map[string]string{
		"http://localhost:5000/device/{device_id}/data": "http://localhost:5000/device/a:b/data",
		"https://h/{device_id}/x/{device_id}":           "https://h/a:b/x/a:b",
		"https://h/in?device={device_id}&v=1":           "https://h/in?device=a%3Ab&v=1",
		"https://h/in":                                  "https://h/in",
		"https://h":                                     "https://h",
		"http://[::1]:80/a%2Fb//../c":                   "http://[::1]:80/a%2Fb//../c",
		"HTTP://h/":                                     "http://h/",
		"":                                              "url is missing",
		"localhost:5000/x":                              `url "localhost:5000/x": it must begin with http:// or https://`,
		"ftp://h/":                                      `url "ftp://h/": it must begin with http:// or https://`,
		"http:///x":                                     `url "http:///x": it has no host`,
		"http://h:port/":                                `url: invalid port ":port" after host`,
		"http://{device_id}.example/x":                  `url "http://{device_id}.example/x": the host must be one fixed name or address`,
		"http://a,b/x":                                  `url "http://a,b/x": the host must be one fixed name or address`,
		"http://user:pass@h/":                           "url must not hold a user name or password: use the bearer token",
		"http://h/x#y":                                  `url "http://h/x#y": a fragment (#) is never sent: remove it`,
		"http://h/x#":                                   `url "http://h/x#": a fragment (#) is never sent: remove it`,
		"http://h/{device}/x":                           `url "http://h/{device}/x": {device_id} is the only placeholder there is`,
		"http://h/a b":                                  `url "http://h/a b": only printable ASCII without spaces is allowed; escape the rest with %`,
	} {
		target, err := parseTarget(raw)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = string(target.append(nil, "a:b"))
		}
		if got != want && (err == nil || !strings.HasPrefix(got, want) || want == "") {
			t.Errorf("%q:\n got %s\nwant %s", raw, got, want)
		}
	}
}

func TestTargetEscapes(t *testing.T) {
	target, err := parseTarget("http://h/d/{device_id}/x?id={device_id}")
	if err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		"sensor_001": "http://h/d/sensor_001/x?id=sensor_001",
		"a/../b":     "http://h/d/a%2F..%2Fb/x?id=a%2F..%2Fb",
		".":          "http://h/d/%2E/x?id=.",
		"..":         "http://h/d/%2E%2E/x?id=..",
		"a?b=c&d#e":  "http://h/d/a%3Fb=c&d%23e/x?id=a%3Fb%3Dc%26d%23e",
		"a\r\nb c":   "http://h/d/a%0D%0Ab%20c/x?id=a%0D%0Ab+c",
		"é":          "http://h/d/%C3%A9/x?id=%C3%A9",
	} {
		if got := string(target.append(nil, device)); got != want {
			t.Errorf("%q: got %s, want %s", device, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for want, cfg := range map[string]Config{
		"backend: url is missing":              {},
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

func TestWithoutQuery(t *testing.T) {
	for url, want := range map[string]string{
		"https://h/in?token=s3cret": "https://h/in?...", "https://h/in": "https://h/in", "https://h?": "https://h?...",
	} {
		if got := WithoutQuery(url); got != want {
			t.Errorf("WithoutQuery(%q) = %q", url, got)
		}
	}
}
