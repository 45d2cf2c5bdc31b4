package forward

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(patient{m}, serverGoroutines...)
}

// serverGoroutines are of the server that the benchmark uses.
var serverGoroutines = []goleak.Option{
	goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
}

// patient waits for fasthttp's cleaner, which outlives Close by Config.idle.
type patient struct{ *testing.M }

func (m patient) Run() int {
	code := m.M.Run()
	for range 20 { // each tries for a while
		if goleak.Find(serverGoroutines...) == nil {
			break
		}
	}
	return code
}

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// count returns how many lines contain all of the parts.
func (l *logBuffer) count(parts ...string) (n int) {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(line, part)
		}
		if all {
			n++
		}
	}
	return n
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// fixture is a Forwarder with what it said.
type fixture struct {
	*Forwarder
	t        testing.TB
	store    *memory
	log      *logBuffer
	patience time.Duration
	mu       sync.Mutex
	answers  []Answer
}

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	x := &fixture{t: t, store: newMemory(t), log: &logBuffer{}, patience: 20 * time.Second}
	x.store.anyOrder = cfg.Unordered
	if cfg.courier != nil {
		x.patience = time.Hour // on synthetic time
	}
	if cfg.idle == 0 {
		cfg.idle = 50 * time.Millisecond // fasthttp's cleaner outlives Close by as much
	}
	f, err := New(cfg, x.store, func(a Answer) {
		m := *a.Message
		m.Payload = slices.Clone(m.Payload)
		a.Message = &m
		x.mu.Lock()
		defer x.mu.Unlock()
		x.answers = append(x.answers, a)
	}, x.log.logger())
	if err != nil {
		t.Fatal(err)
	}
	x.Forwarder = f
	f.Start(Counts{})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f.Close(ctx)
		<-f.exited
	})
	return x
}

// Enqueue stores m and enqueues its position.
func (x *fixture) Enqueue(m Message) error {
	if err := x.Admit(m.DeviceID); err != nil {
		return err
	}
	x.Forwarder.Enqueue(m.DeviceID, x.store.add(m), len(m.Payload))
	x.Dispatch()
	return nil
}

func (x *fixture) enqueue(m Message) {
	x.t.Helper()
	if err := x.Enqueue(m); err != nil {
		x.t.Fatalf("Enqueue: %v", err)
	}
}

// drain closes the Forwarder and expects everything to have been delivered or given up.
func (x *fixture) drain() Stats {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), x.patience)
	defer cancel()
	if err := x.Close(ctx); err != nil {
		x.t.Fatalf("Close: %v\nlog:\n%s", err, x.log)
	}
	s := x.Stats()
	if s.Pending != 0 || s.Lanes != 0 || s.InFlight != 0 || s.Accepted != s.Delivered+s.Dead ||
		s.Delivered != uint64(x.store.count("delivered")) ||
		s.Dead != uint64(x.store.count("dead")) || x.store.count("") != 0 {
		x.t.Fatalf("after Close: %+v", s)
	}
	observed := uint64(0)
	for _, n := range s.Latency.Counts {
		observed += n
	}
	if observed != s.Delivered {
		x.t.Fatalf("%d latencies of %d deliveries", observed, s.Delivered)
	}
	return s
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// message returns the n-th message of a device.
func message(device string, n int) Message {
	return Message{
		DeviceID:   device,
		MessageID:  fmt.Sprintf("550e8400-e29b-41d4-a716-%012d", n),
		Timestamp:  1727712000,
		AcceptedAt: time.Now(),
		Topic:      "device/" + device + "/data",
		Payload:    fmt.Appendf(nil, `{"n":%d}`, n),
	}
}

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

func TestBackoff(t *testing.T) {
	for failures, ceiling := range map[int]time.Duration{
		1:       100 * time.Millisecond,
		2:       200 * time.Millisecond,
		5:       1600 * time.Millisecond,
		9:       25600 * time.Millisecond,
		10:      30 * time.Second,
		1000000: 30 * time.Second,
	} {
		var longest time.Duration
		for range 1000 {
			d := backoff(failures, maxBackoff)
			if d < 0 || d >= ceiling {
				t.Fatalf("backoff(%d) = %v, want below %v", failures, d, ceiling)
			}
			longest = max(longest, d)
		}
		if longest < ceiling*9/10 {
			t.Errorf("backoff(%d): longest of 1000 is %v, want it to spread up to %v", failures, longest, ceiling)
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
		"backend: timeout, concurrency,":       {URL: "http://h/", Concurrency: -1},
		"backend: batch is 1001; at most 1000": {URL: "http://h/", Batch: 1001},
		`backend: url "http://h/{device_id}": with batch, messages of many devices go in one request: remove {device_id}, or batch`: {URL: "http://h/{device_id}", Batch: 2},
		`backend: url "http://h/?d={device_id}": with batch,`:                                                                       {URL: "http://h/?d={device_id}", Batch: 2},
		"backend: the signing secret begins with whsk_, a private key":                                                              {URL: "http://h/", SigningSecret: []byte("whsk_geheim")},
		"backend: the signing secret has no key behind whsec_":                                                                      {URL: "http://h/", SigningSecret: []byte("whsec_")},
		"backend: the signing secret is not base64 behind whsec_; remove the":                                                       {URL: "http://h/", SigningSecret: []byte("whsec_geheim!")},
	} {
		_, err := New(cfg, newMemory(t), nil, (&logBuffer{}).logger())
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
