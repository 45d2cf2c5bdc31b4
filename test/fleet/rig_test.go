package fleet

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	bouncer "mosquitto-bouncer/plugin/fleet"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

const stream = "bouncer_up"

// settings are those of a gateway of the cluster's fleet.
func (c *cluster) settings(name string, more map[string]any) map[string]any {
	s := map[string]any{
		"backend.url":   "http://localhost:5000/device/{device_id}/data",
		"fleet.servers": c.urls(), "fleet.name": name, "fleet.deliver": false, "fleet.replicas": len(c.nodes),
		"fleet.max_bytes": "1GiB",
	}
	for key, value := range more {
		s[key] = value
	}
	return s
}

// gateway starts a broker whose messages go to the cluster.
func (c *cluster) gateway(t *testing.T, name string, devices int, more map[string]any) *harness.Gateway {
	t.Helper()
	return harness.New(t, c.options(name, devices, more))
}

func (c *cluster) options(name string, devices int, more map[string]any) broker.Options {
	o := broker.Options{HTTP: true, Quiet: true, Settings: c.settings(name, more)}
	for i := range devices {
		o.Devices = append(o.Devices, fmt.Sprintf("%s.%d", name, i+1))
	}
	return o
}

// load is a stream of publishes of all devices of a gateway.
func load(g *harness.Gateway, devices int, name string, rate float64) device.Load {
	l := device.Load{Window: 50, Rate: rate, Duration: time.Minute, Payload: []byte(harness.Payload)}
	for i := range devices {
		l.Devices = append(l.Devices, g.Device(fmt.Sprintf("%s.%d", name, i+1)))
	}
	return l
}

// pending counts the messages that wait in a gateway's journal.
func pending(t testing.TB, g *harness.Gateway) (n int) {
	t.Helper()
	if _, err := journal.Inspect(g.Broker.Path("state/journal"), func(_ journal.Position, _ *journal.Accepted, o journal.Outcome) {
		if o == journal.Pending {
			n++
		}
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// drained waits until the journal is empty.
func drained(t testing.TB, g *harness.Gateway) {
	t.Helper()
	eventually(t, "all messages are stored", func() bool { return pending(t, g) == 0 })
}

// all reads the stream from its beginning. An answer may be lost with a node that is gone, so it tries again.
func all(t testing.TB, js jetstream.JetStream) (messages []jetstream.Msg) {
	t.Helper()
	var err error
	for range 8 {
		if messages, err = read(js); err == nil {
			return messages
		}
		t.Logf("reading the stream again: %v", err)
	}
	t.Fatalf("the stream cannot be read: %v", err)
	return nil
}

func read(js jetstream.JetStream) (messages []jetstream.Msg, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	total := int(s.CachedInfo().State.Msgs)
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	for len(messages) < total {
		batch, err := consumer.Fetch(min(500, total-len(messages)), jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, err
		}
		for m := range batch.Messages() {
			messages = append(messages, m)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%d of %d messages: %w", len(messages), total, ctx.Err())
		}
	}
	return messages, nil
}

// exact checks that the stream has at least so many messages, each once, each under its own subject, and each device's in
// their order without a gap. It returns how many there are.
func exact(t testing.TB, js jetstream.JetStream, least int) int {
	t.Helper()
	messages := all(t, js)
	last := map[string]uint64{} // by device and load
	seen := map[string]bool{}
	for _, m := range messages {
		h := m.Headers()
		key := h.Get("Nats-Msg-Id")
		if seen[key] {
			t.Errorf("%s is there twice", key)
		}
		seen[key] = true
		name := strings.TrimPrefix(h.Get("ce-source"), "/devices/")
		if want := bouncer.Subject("bouncer", 16, name); m.Subject() != want {
			t.Errorf("%s is under %s, not %s", key, m.Subject(), want)
		}
		id, err := uuid.Parse(h.Get("ce-id"))
		if err != nil || key != name+":"+id.String() {
			t.Fatalf("the ids %q and %q: %v", key, h.Get("ce-id"), err)
		}
		lane, n := name+string(id[:8]), binary.BigEndian.Uint64(id[8:])
		if before, known := last[lane]; known && n != before+1 {
			t.Errorf("%s: %d after %d", name, n, before)
		}
		last[lane] = n
		if string(m.Data()) != harness.Payload {
			t.Errorf("the payload %q", m.Data())
		}
	}
	if len(messages) < least {
		t.Errorf("%d messages are in the stream, %d were accepted", len(messages), least)
	}
	return len(messages)
}

// during runs a load until do is done.
func during(t testing.TB, l device.Load, do func()) *device.Report {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer cancel()
		defer close(done)
		do()
	}()
	report, err := l.Run(ctx)
	if err != nil {
		t.Errorf("load: %v", err)
	}
	<-done
	return report
}

// storing waits until the stream has grown by so many messages.
func storing(t testing.TB, js jetstream.JetStream, by uint64) {
	t.Helper()
	first, known := uint64(0), false
	eventually(t, "messages are stored", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return false
		}
		now := s.CachedInfo().State.LastSeq
		if !known {
			first, known = now, true
		}
		return now >= first+by
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readable is the text of a file that the test needs.
func readable(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}
