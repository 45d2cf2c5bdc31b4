package jetstream

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/cloudevent"
	"mosquitto-bouncer/plugin/fleet"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/forwardtest"
	"mosquitto-bouncer/plugin/testkit"
)

// fake is a stream that answers as it is told.
type fake struct {
	mu     sync.Mutex
	got    []fleet.Record
	answer func(r *fleet.Record) (fleet.Outcome, int, error)
}

func (f *fake) Publish(_ context.Context, r *fleet.Record) (fleet.Outcome, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, *r)
	return f.answer(r)
}

func TestRecord(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	at := time.Now()
	m := forward.Message{
		DeviceID: "sensor.001", MessageID: "550E8400-e29b-41d4-a716-446655440000", Timestamp: 1727712000, AcceptedAt: at,
		Topic: "device/größe \"1\"", Payload: []byte(`{"a": 1.0}`), Traceparent: trace,
	}
	want := map[string][]string{
		"ce-specversion": {"1.0"}, "ce-type": {"mosquitto-bouncer.message.v1"}, "ce-id": {"550e8400-e29b-41d4-a716-446655440000"},
		"ce-source": {"/devices/sensor.001"}, "ce-subject": {"device/gr%C3%B6%C3%9Fe%20%221%22"}, "ce-time": {"2024-09-30T16:00:00Z"},
		"content-type": {"application/json"}, "traceparent": {trace},
	}
	r := record(&m)
	if !reflect.DeepEqual(r.Header, want) || r.ID != "sensor.001:550e8400-e29b-41d4-a716-446655440000" || r.Device != "sensor.001" ||
		string(r.Payload) != `{"a": 1.0}` || !r.AcceptedAt.Equal(at) {
		t.Errorf("%+v", r)
	}
	m.Topic, m.Traceparent = strings.Repeat("t", cloudevent.MaxSubject+1), "not one"
	bare := maps.Clone(want)
	delete(bare, "ce-subject")
	delete(bare, "traceparent")
	if r := record(&m); !reflect.DeepEqual(r.Header, bare) {
		t.Errorf("%+v", r.Header)
	}
	size := 0
	for name, values := range want {
		size += len(name) + len(values[0]) + 4
	}
	if most := size + cloudevent.MaxSubject + 2*64 + 256; most > fleet.HeaderRoom {
		t.Errorf("headers may take %d bytes", most)
	}
}

// TestDelivery: what NATS does not take is sent again, in order; only what no stream takes is a dead letter, with the reason.
func TestDelivery(t *testing.T) {
	store := forwardtest.NewStore(t)
	tries := map[string]int{}
	s := &fake{answer: func(r *fleet.Record) (fleet.Outcome, int, error) {
		tries[r.ID]++
		switch {
		case strings.HasSuffix(r.ID, "2"):
			return fleet.Impossible, 10054, errors.New("the message of 9 bytes is larger than NATS takes")
		case tries[r.ID] == 1:
			return fleet.Unknown, 10077, errors.New("the stream is full")
		case tries[r.ID] == 2:
			return fleet.Unknown, 0, errors.New("no answer")
		}
		return fleet.Stored, 0, nil
	}}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	f, err := forward.New(forward.Config{Sink: New(s), Concurrency: 4}, stores{store}, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	f.Start(forward.Counts{})
	for n := 1; n <= 3; n++ {
		for _, device := range []string{"a", "b"} {
			m := forwardtest.NewMessage(device, n)
			f.Enqueue(device, store.Add(m), len(m.Payload))
			f.Dispatch()
		}
	}
	testkit.Eventually(t, "delivery", func() bool { return f.Stats().Pending == 0 })
	if got := f.Stats(); got.Delivered != 4 || got.Dead != 2 {
		t.Errorf("%+v", got)
	}
	for _, l := range store.Letters {
		if l.Reason != forward.ReasonRefused || l.Status != 10054 || l.Excerpt != "the message of 9 bytes is larger than NATS takes" {
			t.Errorf("%+v", l.DeadLetter)
		}
	}
	if err := f.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// stores is a forward.Store: see package forwardtest.
type stores struct{ *forwardtest.Store }

func (s stores) Load(pos uint64, m *forward.Message) error {
	own := forwardtest.Message(*m)
	err := s.Store.Load(pos, &own)
	*m = forward.Message(own)
	return err
}

func (s stores) Dead(device string, pos uint64, d forward.DeadLetter) error {
	return s.Store.Dead(device, pos, forwardtest.DeadLetter(d))
}

// TestNoBatch: a batch would be stored in part.
func TestNoBatch(t *testing.T) {
	s := &fake{answer: func(*fleet.Record) (fleet.Outcome, int, error) { return fleet.Stored, 0, nil }}
	r := New(s).Send(t.Context(), &forward.Batch{Messages: make([]forward.Message, 2)})
	if r.Meaning != forward.Failed || r.Err == nil || len(s.got) > 0 {
		t.Errorf("%+v", r)
	}
}
