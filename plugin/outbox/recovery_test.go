package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
)

// aRecovery is one without a forwarder's workers.
func aRecovery(t *testing.T, seen *replay.Set, now int64) *recovery {
	t.Helper()
	path := filepath.Join(t.TempDir(), "devices.db")
	store, err := registry.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Add(t.Context(), "known", registry.Secret("s")), store.Close()); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r, err := registry.Open(path, log)
	if err != nil {
		t.Fatal(err)
	}
	f, err := forward.New(forward.Config{}, newMessages(), nil, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = f.Close(t.Context()) })
	return &recovery{
		registry: r, seen: seen, forwarder: f, now: now, tolerance: 300,
		entry: entryOf, unknown: make(map[string]string),
		isAnswer: func(topic []byte) bool { return strings.HasSuffix(string(topic), "/command/result") },
	}
}

// TestRecovery has every message in a journal either remembered, or its timestamp refused.
func TestRecovery(t *testing.T) {
	const now = 1_800_000_000
	seen := replay.New(10, 5*time.Minute)
	r := aRecovery(t, seen, now)
	type message struct {
		device    string
		timestamp int64
	}
	var all []message
	for n := range 30 {
		all = append(all, message{[]string{"known", "unknown", "known", "gone"}[n%4], now - 600 + int64(n)*25})
	}
	pending := 0
	for n, m := range all {
		a := journal.Accepted{Device: m.device, Timestamp: m.timestamp, MessageID: [16]byte{byte(n)}, Tag: [16]byte{1}, Client: 7, QoS: 1}
		o := journal.Outcome(n % 3)
		if o == journal.Pending {
			pending++
		}
		r.take(journal.Position(n+1), &a, o)
	}
	seen.Expire(now, math.MaxInt)
	if r.err != nil || r.messages != len(all) || len(r.unknown) != 2 || r.forwarder.Stats().Pending != pending {
		t.Errorf("%+v, %+v", r, r.forwarder.Stats())
	}
	remembered := 0
	for n, m := range all {
		serial, err := r.registry.Reserve(m.device)
		if err != nil {
			t.Fatal(err)
		}
		e, found := seen.Lookup(serial, [16]byte{byte(n)})
		if found {
			remembered++
			if e != (replay.Entry{Tag: [12]byte{0: 1, 8: 7}}) {
				t.Errorf("%d is remembered as %+v", n, e)
			}
		} else if !seen.Forgotten(m.timestamp) {
			t.Errorf("%d, at %+d s, is neither remembered nor refused", n, m.timestamp-now)
		}
	}
	if remembered != 10 {
		t.Errorf("%d are remembered, there is room for 10", remembered)
	}
}

// TestForgottenStateIsKept carries over a restart what was dropped, and takes a damaged note for the worst.
func TestForgottenStateIsKept(t *testing.T) {
	b := openBox(t, nil)
	if err := b.forgotten.save(math.MaxInt64); !errors.Is(err, journal.ErrNotYet) {
		t.Errorf("while it may be remembered: %v", err)
	}
	b.seen.Restore([]replay.Span{{First: 1000, Last: 2000}, {First: 5000, Last: 5000}})
	b.forgotten.at = 0
	b.NoteForgotten(1)
	if err := b.forgotten.save(1500); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if got := fmt.Sprint(b.seen.Spans()); got != "[{1000 2000} {5000 5000}]" {
		t.Errorf("after a restart: %s", got)
	}
	path := filepath.Join(b.options.StateDir, "journal", forgottenState+".state")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-1] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	now := time.Now().Unix()
	if !b.seen.Forgotten(0) || !b.seen.Forgotten(now-301) || b.seen.Forgotten(now-290) || strings.Count(b.log.String(), "is damaged; messages that are older") != 1 {
		t.Errorf("damaged: %v\n%s", b.seen.Spans(), b.log.String())
	}
}
