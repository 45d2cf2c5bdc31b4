package fleet

import (
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	bouncer "mosquitto-bouncer/plugin/fleet"
)

// uplinkOptions are those of a gateway of a cluster of one server.
func (c *cluster) uplinkOptions() bouncer.Options {
	return bouncer.Options{
		Name: "gw-a", Servers: c.urls(), Prefix: "bouncer", Partitions: 16, Replicas: 1, Dedup: time.Second, MaxBytes: 1 << 30, MaxMessage: 1 << 16,
		Timeout: 5 * time.Second, StateDir: c.t.TempDir(), Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)),
	}
}

// uplink is the connection of such a gateway, without a broker.
func (c *cluster) uplink(change func(*bouncer.Options)) *bouncer.Fleet {
	c.t.Helper()
	o := c.uplinkOptions()
	change(&o)
	f := bouncer.New(o)
	c.t.Cleanup(f.Close)
	must(c.t, f.Start())
	return f
}

// record is a message of the device "a".
func record(n int, age time.Duration, payload string) *bouncer.Record {
	return &bouncer.Record{
		Device: "a", ID: fmt.Sprint("a:", n), AcceptedAt: time.Now().Add(-age), Header: map[string][]string{"ce-time": {"2024-09-30T16:00:00Z"}},
		Payload: []byte(payload),
	}
}

// TestBacklog: each message of a long backlog is looked up with a few requests, not with one for each message before it.
func TestBacklog(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	f := c.uplink(func(*bouncer.Options) {})
	nc, _ := c.client()
	requests, err := nc.SubscribeSync("$JS.API.STREAM.MSG.GET." + stream)
	must(t, err)
	must(t, nc.Flush())
	const messages = 60
	for n := range messages {
		if o, status, err := f.Publish(t.Context(), record(n, time.Hour, "1")); o != bouncer.Stored {
			t.Fatalf("%d: %v %d %v", n, o, status, err)
		}
	}
	must(t, nc.Flush())
	if n, _, err := requests.Pending(); err != nil || n < messages || n > 2*messages {
		t.Errorf("%d requests for %d messages, %v", n, messages, err)
	}
}

// TestLongSearch: a search that takes longer than an attempt may take goes on at the next, and so has an end.
func TestLongSearch(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	f := c.uplink(func(o *bouncer.Options) { o.Timeout = 100 * time.Millisecond })
	_, js := c.client()
	const before = 2000
	for range before {
		_, err := js.PublishAsync(bouncer.Subject("bouncer", 16, "a"), []byte("1"))
		must(t, err)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(patience):
		t.Fatal("the stream is not filled")
	}
	eventually(t, "the message is stored", func() bool {
		o, _, _ := f.Publish(t.Context(), record(1, time.Hour, "1"))
		return o == bouncer.Stored
	})
	if n := len(all(t, js)); n != before+1 {
		t.Errorf("%d messages", n)
	}
}

// TestReusedID: another message under an id that the stream has is not taken for a repetition, be its id known to NATS or
// looked up. It becomes a dead letter, so that it is not lost.
func TestReusedID(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	f := c.uplink(func(o *bouncer.Options) { o.Dedup = time.Minute })
	expect := func(r *bouncer.Record, want bouncer.Outcome) {
		t.Helper()
		if o, status, err := f.Publish(t.Context(), r); o != want || (err == nil) != (want == bouncer.Stored) {
			t.Errorf("%v %d %v, want %v", o, status, err, want)
		}
	}
	expect(record(1, 0, "1"), bouncer.Stored)
	expect(record(1, 0, "1"), bouncer.Stored)
	expect(record(1, 0, "2"), bouncer.Impossible)
	expect(record(1, time.Hour, "1"), bouncer.Stored)
	expect(record(1, time.Hour, "2"), bouncer.Impossible)
	later := record(1, 0, "1")
	later.Header["ce-time"] = []string{"2024-09-30T17:00:00Z"}
	expect(later, bouncer.Impossible)
	_, js := c.client()
	must(t, js.DeleteStream(t.Context(), stream))
	s := sound()
	_, err := js.CreateStream(t.Context(), s)
	must(t, err)
	expect(record(1, 0, "2"), bouncer.Stored)
}

// TestLimitLowered: a limit of the stream that was lowered after it was checked gives up no message: it waits until the limit is
// corrected.
func TestLimitLowered(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	f := c.uplink(func(o *bouncer.Options) { o.Dedup = 20 * time.Minute })
	_, js := c.client()
	s := sound()
	s.MaxBytes, s.MaxMsgSize = 1<<30, 200
	_, err := js.UpdateStream(t.Context(), s)
	must(t, err)
	r := record(1, 0, strings.Repeat("1", 1000))
	if o, status, err := f.Publish(t.Context(), r); o != bouncer.Unknown {
		t.Errorf("%v %d %v", o, status, err)
	}
	eventually(t, "the limit is found", func() bool { return f.Health() != nil })
	s.MaxMsgSize = -1
	_, err = js.UpdateStream(t.Context(), s)
	must(t, err)
	eventually(t, "the message is stored", func() bool { o, _, _ := f.Publish(t.Context(), r); return o == bouncer.Stored })
}

// TestReconnects: connections that are lost leave nothing behind: no goroutine, no subscription.
func TestReconnects(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	f := c.uplink(func(o *bouncer.Options) { o.Dedup = 20 * time.Minute })
	n := 0
	stored := func() bool {
		o, _, _ := f.Publish(t.Context(), record(n, 0, "1"))
		return o == bouncer.Stored
	}
	var before int
	for n = range 8 {
		eventually(t, "a message is stored", stored)
		if n == 1 {
			before = runtime.NumGoroutine()
		}
		c.nodes[0].kill()
		if stored() {
			t.Error("stored by a server that is gone")
		}
		c.start(c.nodes[0])
	}
	n++
	eventually(t, "a message is stored", stored)
	eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
	_, js := c.client()
	if got := len(all(t, js)); got != 9 {
		t.Errorf("%d messages", got)
	}
}

// TestRightsWithdrawn: a user who may not publish, and an account without JetStream, are told as such; no message is given up.
func TestRightsWithdrawn(t *testing.T) {
	for name, test := range map[string]struct{ extra, want string }{
		"no JetStream": {`accounts {
  A { users: [{ user: a, password: b }] }
  B { jetstream: enabled, users: [{ user: c, password: d }] }
}
no_auth_user: a
`, "JetStream"},
		"no right to publish": {`accounts {
  A { jetstream: enabled, users: [{ user: a, password: b, permissions: { publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] } }] }
}
no_auth_user: a
`, "Permissions Violation"},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, clusterOptions{nodes: 1, extra: test.extra})
			c.start(c.nodes[0])
			eventually(t, "the server listens", func() bool {
				conn, err := net.Dial("tcp", strings.TrimPrefix(c.nodes[0].url, "nats://"))
				if err == nil {
					_ = conn.Close()
				}
				return err == nil
			})
			f := bouncer.New(c.uplinkOptions())
			defer f.Close()
			if err := f.Start(); err != nil && !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
			if o, status, err := f.Publish(t.Context(), record(1, 0, "1")); o != bouncer.Unknown || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v %d %v", o, status, err)
			}
		})
	}
}
