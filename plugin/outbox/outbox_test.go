package outbox

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/testkit"
)

// entryOf is Options.Entry: tag and client.
func entryOf(a *journal.Accepted) (e replay.Entry) {
	copy(e.Tag[:], a.Tag[:])
	binary.LittleEndian.PutUint32(e.Tag[8:], binary.LittleEndian.Uint32(e.Tag[8:])^a.Client)
	return e
}

// aBox is an open outbox with one registered device, sensor_001, and a real backend.
type aBox struct {
	*Outbox
	t         *testing.T
	options   Options
	seen      *replay.Set
	log       *testkit.Log
	delivered atomic.Int64 // requests
}

// aSink is one for HTTP.
func aSink(t *testing.T, url string) forward.Sink {
	t.Helper()
	sink, err := webhook.New(webhook.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

// openBox opens one; change, if not nil, changes its options.
func openBox(t *testing.T, change func(*Options)) *aBox {
	t.Helper()
	b := &aBox{t: t, log: new(testkit.Log)}
	backend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { b.delivered.Add(1) }))
	t.Cleanup(backend.Close)
	dir := t.TempDir()
	store, err := registry.OpenStore(filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Add(t.Context(), "sensor_001", registry.Secret("s")), store.Close()); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	devices, err := registry.Open(filepath.Join(dir, "devices.db"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = devices.Close() })
	b.options = Options{
		StateDir:   dir,
		Journal:    Journal{MaxBytes: 1 << 30, DeviceShare: 0.25, MaxMessage: 64 << 10, Sync: time.Second},
		Letters:    deadletter.Limits{MaxBytes: 1 << 30, DeviceShare: 0.25},
		Forward:    forward.Config{Sink: aSink(t, backend.URL)},
		BackendURL: backend.URL,
		Registry:   devices,
		Tolerance:  5 * time.Minute,
		Entry:      entryOf,
		Wake:       func() {},
		Log:        log,
	}
	if change != nil {
		change(&b.options)
	}
	b.open()
	t.Cleanup(func() { b.Close(time.Second) }) // whichever it is then
	return b
}

func (b *aBox) open() {
	b.t.Helper()
	b.seen = replay.New(1<<16, b.options.Tolerance)
	o := b.options
	o.Seen = b.seen
	var err error
	if b.Outbox, err = Open(o); err != nil {
		b.t.Fatal(err)
	}
}

// restart closes the outbox and opens another one in its place.
func (b *aBox) restart() {
	b.t.Helper()
	b.Close(time.Second)
	b.open()
}

// round is what the broker's thread does in a tick.
func (b *aBox) round() {
	b.Requeue()
	b.Tick()
	now := time.Now().Unix()
	b.seen.Expire(now, 256)
	b.NoteForgotten(now)
}

// tickUntil ticks until a condition is met.
func (b *aBox) tickUntil(what string, met func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited for %s; the log says:\n%s", what, b.log)
		}
		b.round()
	}
}

// TestAppendDoesNotAllocate: nor does Admit.
func TestAppendDoesNotAllocate(t *testing.T) {
	b := openBox(t, func(o *Options) { o.Forward.Sink = aSink(t, "http://127.0.0.1:1"); o.Forward.Concurrency = 1 })
	b.Tick()
	a := journal.Accepted{Device: "sensor_001", Timestamp: 1, AcceptedAt: time.Now(), Topic: []byte("device/sensor_001/data"), Payload: []byte(`{}`)}
	n := uint64(0)
	appended := func() {
		n++
		binary.BigEndian.PutUint64(a.MessageID[:], n)
		if err := errors.Join(b.Admit(a.Device, len(a.Payload)), b.Append(&a)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10000 {
		appended()
	}
	if allocations := testing.AllocsPerRun(10000, appended); allocations >= 1 {
		t.Errorf("%v allocations", allocations)
	}
}

// TestUntickedAppendIsDelivered: on a broker that never ticks, a message is sent at once.
func TestUntickedAppendIsDelivered(t *testing.T) {
	b := openBox(t, nil)
	a := journal.Accepted{
		Device: "sensor_001", MessageID: uuid.New(), Timestamp: time.Now().Unix(), AcceptedAt: time.Now(),
		Topic: []byte("device/sensor_001/data"), Payload: []byte("{}"),
	}
	if err := b.Append(&a); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); b.delivered.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not delivered")
		}
	}
}

// TestOpenSaysWhatIsOfTheStateDirectory: the root adds the setting to such an error.
func TestOpenSaysWhatIsOfTheStateDirectory(t *testing.T) {
	b := openBox(t, nil)
	o := b.options
	o.Seen = replay.New(10, o.Tolerance)
	_, err := Open(o)
	if _, is := errors.AsType[*StateError](err); !is || !errors.Is(err, journal.ErrLocked) {
		t.Errorf("a second outbox in one directory: %v", err)
	}
	o.StateDir, o.Forward.Batch = t.TempDir(), -1
	_, err = Open(o)
	if _, is := errors.AsType[*StateError](err); is || err == nil {
		t.Errorf("a batch of -1: %v", err)
	}
}

// TestStoreOfLostMessages: what can be read no more becomes a letter all the same.
func TestStoreOfLostMessages(t *testing.T) {
	b := openBox(t, nil)
	died := time.Now()
	lost := uint64(77<<32 | 4096)
	if err := b.messages.Load(lost, &forward.Message{DeviceID: "sensor_001"}); !errors.Is(err, forward.ErrUnreadable) {
		t.Errorf("loading it: %v", err)
	}
	for range 2 { // told twice
		if err := b.messages.Dead("sensor_001", lost, forward.DeadLetter{Reason: forward.ReasonUnreadable, DiedAt: died}); err != nil {
			t.Fatal(err)
		}
	}
	totals, err := b.messages.letters.Totals(t.Context())
	l, getErr := b.messages.letters.Get(t.Context(), 1)
	if err != nil || getErr != nil || totals.Letters != 1 || l.MessageID != "0000004d:1000" || l.Deaths != 1 || len(l.Payload) != 0 {
		t.Errorf("%+v, %+v, %v", totals, l, errors.Join(err, getErr))
	}
}

// TestPanicAfterTheJournal: a message that is in the journal is accepted, though it cannot be handed over.
func TestPanicAfterTheJournal(t *testing.T) {
	b := openBox(t, nil)
	q := queue{journal: b.journal, log: b.options.Log} // without a forwarder
	a := journal.Accepted{Device: "sensor_001", MessageID: uuid.New(), Timestamp: time.Now().Unix(), AcceptedAt: time.Now(), Payload: []byte("{}")}
	if err := q.Append(&a); err != nil || b.Stats().Accounts.Pending != 1 {
		t.Errorf("%v, %+v", err, b.Stats().Accounts)
	}
	b.restart()
	b.tickUntil("delivery", func() bool { return b.delivered.Load() == 1 })
}
