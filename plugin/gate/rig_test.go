package gate

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/retained"
	"mosquitto-bouncer/plugin/sampler"
	"mosquitto-bouncer/plugin/subscription"
	"mosquitto-bouncer/plugin/testkit"
)

// aBroker is a Broker that records what it is called with. silent: it does not.
type aBroker struct {
	silent    bool
	lines     []string
	published []mqtt.Message
	kicked    []string
}

func (b *aBroker) Log(_ slog.Level, line string) {
	if !b.silent {
		b.lines = append(b.lines, line)
	}
}

func (b *aBroker) Publish(p mqtt.Message) error {
	if !b.silent {
		b.published = append(b.published, p)
	}
	return nil
}

func (b *aBroker) Kick(clientID string)                           { b.kicked = append(b.kicked, clientID) }
func (b *aBroker) KickUser(username string)                       { b.kicked = append(b.kicked, "user "+username) }
func (b *aBroker) Fingerprint(uintptr) (sum [32]byte, found bool) { return }
func (b *aBroker) SetStrangers(Strangers)                         {}
func (b *aBroker) Traceparent(unsafe.Pointer) string              { return "" }
func (b *aBroker) Properties(unsafe.Pointer) []byte               { return nil }
func (b *aBroker) last() string                                   { return b.lines[len(b.lines)-1] }

// aGate is a gate with devices, a real registry, journal and backend behind it. What change configures differently stays
// different over a restart.
type aGate struct {
	*Gate
	t       testing.TB
	dir     string
	backend string // URL
	host    *aBroker
	log     testkit.Log
	outbox  *outbox.Outbox
	stop    func()
}

// startGate starts one with two devices, sensor_001 and sensor_002, whose secret is "s". change, if not nil, changes the
// options and the settings.
func startGate(t *testing.T, change func(*Options, *Settings)) *aGate {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	t.Cleanup(server.Close)
	return openGate(t, server.URL, map[string]string{"sensor_001": "s", "sensor_002": "s"}, change)
}

// openGate starts one with devices, by id with their secrets.
func openGate(t testing.TB, backend string, devices map[string]string, change func(*Options, *Settings)) *aGate {
	t.Helper()
	g := &aGate{t: t, dir: t.TempDir(), backend: backend, host: new(aBroker)}
	store, err := registry.OpenStore(filepath.Join(g.dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	for id, secret := range devices {
		if err := store.Add(context.Background(), id, registry.Secret(secret)); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	g.open(change)
	t.Cleanup(func() { g.stop() })
	return g
}

// restart stops the gate, with what is behind it, and starts it again.
func (g *aGate) restart(change func(*Options, *Settings)) {
	g.t.Helper()
	g.stop()
	g.open(change)
}

func (g *aGate) open(change func(*Options, *Settings)) {
	g.t.Helper()
	must := func(err error) {
		g.t.Helper()
		if err != nil {
			g.t.Fatal(err)
		}
	}
	log := g.log.Logger()
	devices, err := registry.Open(filepath.Join(g.dir, "devices.db"), log)
	must(err)
	removed, err := former.Open(filepath.Join(g.dir, former.FileName), devices, log)
	must(err)
	verified, err := retained.Open(filepath.Join(g.dir, retained.FileName), func([]byte) bool { return true }, log)
	must(err)
	sink, err := webhook.New(webhook.Config{URL: g.backend, Concurrency: 1})
	must(err)
	const tolerance = 30 * time.Minute
	seen := replay.New(1<<16, tolerance)
	g.outbox, err = outbox.Open(outbox.Options{
		StateDir: g.dir,
		Journal:  outbox.Journal{MaxBytes: 64 << 30, DeviceShare: 1, MaxMessage: 1 << 20, Sync: time.Second},
		Letters:  deadletter.Limits{MaxBytes: 1 << 30, DeviceShare: 1},
		Forward:  forward.Config{Sink: sink, Concurrency: 1, MaxAge: time.Hour},
		Registry: devices, Seen: seen, Tolerance: tolerance, Entry: RecoveredEntry,
		IsAnswer: func([]byte) bool { return false },
		Wake:     func() {}, Log: log, BackendURL: g.backend,
	})
	must(err)
	down := downlink.NewDispatcher(g.host, func() {}, log)
	topics := NewTopics(TopicConfig{Gated: []string{"device/+/data"}, Response: "device/+/response", Command: "device/+/command"})
	o := Options{
		Broker: g.host, Topics: topics, Registry: devices, Removed: removed, Seen: seen, Retained: verified, Tolerance: tolerance,
		Outbox:    g.outbox,
		Responses: downlink.NewResponses(downlink.ResponseOptions{Topic: "device/{device_id}/response", MaxAge: time.Hour, Reserved: topics.Reserved, Log: log}, down),
		Forgotten: g.outbox.NoteForgotten, Refused: down.Refused, Wake: func() {},
		Sampler: sampler.New(), Panics: crash.NewReporter(log), Log: log,
	}
	o.BeforePublish = func() {
		g.outbox.Requeue()
		down.Drain()
		g.AnswerCounts()
	}
	s := Settings{MaxBytes: 64 << 10, Rate: rate.Inf, MaxBadSignatures: 10, NamesAreCertificates: true, AsksSessions: true}
	if change != nil {
		change(&o, &s)
	}
	g.Gate = New(o, s)
	g.stop = func() {
		g.outbox.Close(time.Second)
		must(verified.Close())
		must(removed.Close())
		must(devices.Close())
	}
}

// tick is a round of the broker's event loop.
func (g *aGate) tick() {
	now := time.Now()
	g.Tick(now)
	g.outbox.Tick()
	g.Housekeep(now)
}

// fresh returns a good publish of device over connection 1.
func (g *aGate) fresh(device string) *Publish {
	p := publish(device, sign(g.t, "s", device, time.Now().Unix(), uuid.NewString(), `{"t":22}`))
	p.QoS, p.Connection = 1, 1
	return p
}

// send does what the broker does with a publish: the access check, and the message if that allows it.
func (g *aGate) send(p *Publish) Disposition {
	if g.Access(Write, p) != Allow {
		return Refuse
	}
	return g.Message(p)
}

// reconnect ends the connection that p came on.
func (g *aGate) reconnect(p *Publish) {
	g.Disconnected(p, subscription.MayStay)
	g.tick()
}

// by returns p as another client reads, writes or subscribes it.
func by(p *Publish, identity, topic string) *Publish {
	q := *p
	q.Identity, q.ClientID, q.Connection = []byte(identity), []byte(identity), 2
	if topic != "" {
		q.Topic = []byte(topic)
	}
	return &q
}
