package plugin

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"mosquitto-bouncer/plugin/gate"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/standing"
	"mosquitto-bouncer/plugin/subscription"
)

// tickUntil ticks until a condition is met.
func (g *aGateway) tickUntil(what string, met func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("waited for %s; the log says:\n%s", what, strings.Join(g.host.lines, "\n"))
		}
		g.Tick()
	}
}

// TestRestartRemembers: after a restart an accepted message is a replay, but for the client that may not have been told.
func TestRestartRemembers(t *testing.T) {
	g := startGateway(t, "")
	const again = gate.Swallow
	for qos := byte(1); qos <= 2; qos++ {
		p := g.fresh("sensor_001")
		p.QoS = qos
		if o := g.send(p); o != firstOutcome(qos) {
			t.Fatalf("outcome %d: %s", o, g.host.last())
		}
		g.restart()
		other := *p
		other.ClientID = []byte("another client")
		if o := g.send(&other); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=replay") {
			t.Errorf("another client: outcome %d: %s", o, g.host.last())
		}
		if o := g.send(p); o != again {
			t.Errorf("QoS %d: outcome %d: %s", qos, o, g.host.last())
		}
		if o := g.send(p); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=replay") {
			t.Errorf("QoS %d, on the same connection: outcome %d: %s", qos, o, g.host.last())
		}
		g.Disconnected(p, subscription.MayStay)
		g.Tick()
		if o := g.send(p); o != again {
			t.Errorf("QoS %d, once more over another connection: outcome %d: %s", qos, o, g.host.last())
		}
		g.restart()
		at0 := *p
		at0.QoS = 0
		if o := g.send(&at0); o != gate.Refuse {
			t.Errorf("at QoS 0: outcome %d", o)
		}
	}
	g.tickUntil("delivery", func() bool { return g.Stats().Accounts == Accounts{Accepted: 2, Delivered: 2} })
	if n := g.backend.Load(); n != 2 {
		t.Errorf("the backend got %d requests", n)
	}
}

// TestJournalFull: what cannot be stored is refused and not remembered.
func TestJournalFull(t *testing.T) {
	g := startGateway(t, "timeout = \"1m\"\n[publish]\nmax_bytes = 700000\n[journal]\nmax_bytes = \"1MiB\"\n")
	large := func(device, id string) *gate.Publish {
		p := publish(device, sign(t, "s", device, time.Now().Unix(), id, `"`+strings.Repeat("x", 600000)+`"`))
		p.QoS, p.Connection = 1, 1
		return p
	}
	if o := g.send(large("sensor_001", uuid.NewString())); o != gate.Route {
		t.Fatalf("outcome %d: %s", o, g.host.last())
	}
	id := uuid.New()
	second := large("sensor_002", id.String())
	if o := g.send(second); o != gate.Refuse || !strings.Contains(g.host.last(), "reason=overloaded") || !strings.Contains(g.host.last(), "journal: full") {
		t.Fatalf("outcome %d: %s", o, g.host.last())
	}
	if _, seen := g.seen.Lookup(g.registry.Lookup([]byte("sensor_002")).Serial, id); seen {
		t.Error("a message that was refused is remembered")
	}
	if s := g.Stats(); s.Accounts.Accepted != 1 || s.Journal.Accepted != 1 || s.Journal.Refused != 1 {
		t.Errorf("%+v", s)
	}
	for _, device := range []string{"sensor_001", "sensor_002"} {
		if o := g.send(g.fresh(device)); o != gate.Route {
			t.Errorf("a small message of %s: outcome %d: %s", device, o, g.host.last())
		}
	}
}

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
	f, err := forward.New(forward.Config{}, newStore(), nil, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = f.Close(t.Context()) })
	return &recovery{
		registry: r, seen: seen, forwarder: f, now: now, tolerance: 300,
		results: gate.NewTopic("device/+/command/result"), unknown: make(map[string]string),
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
	g := startGateway(t, "")
	if err := g.saveForgotten(math.MaxInt64); !errors.Is(err, journal.ErrNotYet) {
		t.Errorf("while it may be remembered: %v", err)
	}
	g.seen.Restore([]replay.Span{{First: 1000, Last: 2000}, {First: 5000, Last: 5000}})
	g.forgottenAt = 0
	g.noteForgotten(1)
	if err := g.saveForgotten(1500); err != nil {
		t.Fatal(err)
	}
	g.restart()
	if got := fmt.Sprint(g.seen.Spans()); got != "[{1000 2000} {5000 5000}]" {
		t.Errorf("after a restart: %s", got)
	}
	path := filepath.Join(filepath.Dir(g.file), "journal", forgottenState+".state")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-1] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	g.restart()
	now := time.Now().Unix()
	if !g.seen.Forgotten(0) || !g.seen.Forgotten(now-301) || g.seen.Forgotten(now-290) || g.host.count("is damaged; messages from before") != 1 {
		t.Errorf("damaged: %v\n%s", g.seen.Spans(), strings.Join(g.host.lines, "\n"))
	}
}

// TestStoreOfLostMessages: what can be read no more becomes a letter all the same.
func TestStoreOfLostMessages(t *testing.T) {
	g := startGateway(t, "")
	died := time.Now()
	lost := uint64(77<<32 | 4096)
	if err := g.store.Load(lost, &forward.Message{DeviceID: "sensor_001"}); !errors.Is(err, forward.ErrUnreadable) {
		t.Errorf("loading it: %v", err)
	}
	for range 2 { // told twice
		if err := g.store.Dead("sensor_001", lost, forward.DeadLetter{Reason: forward.ReasonUnreadable, DiedAt: died}); err != nil {
			t.Fatal(err)
		}
	}
	totals, err := g.store.letters.Totals(t.Context())
	l, getErr := g.store.letters.Get(t.Context(), 1)
	if err != nil || getErr != nil || totals.Letters != 1 || l.MessageID != "0000004d:1000" || l.Deaths != 1 || len(l.Payload) != 0 {
		t.Errorf("%+v, %+v, %v", totals, l, errors.Join(err, getErr))
	}
}

// TestHashClient: it is the same in every run, and never 0.
func TestHashClient(t *testing.T) {
	if got := hashClient([]byte("the client")); got != 0x91bf5533 {
		t.Errorf("%#x", got)
	}
	if hashClient(nil) == 0 {
		t.Error("0 for no client id")
	}
}

// A status that is made fatal is not the backend's state any more, whatever was known before the restart.
func TestFatalAfterRefusing(t *testing.T) {
	for _, fatal := range [][]int{nil, {401}} {
		c := &config.Config{StateDir: t.TempDir()}
		c.Backend.URL, c.Backend.FatalStatuses = "http://backend/", fatal
		if err := standing.Save(c.StateDir, c.Backend.URL, standing.State{Refusing: true, Status: 401, Since: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if got := standingOf(c, slog.New(slog.DiscardHandler)); got.Refusing != (fatal == nil) {
			t.Errorf("fatal %v: %+v", fatal, got)
		}
	}
}
