package test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// payload is what the loads send.
const payload = `{"temperature":22.5,"humidity":60}`

// A fleet is a number of registered devices; each has a connection that takes its responses.
type fleet struct {
	devices []*device.Device
	inboxes []*device.Inbox
}

// names are the ids of n devices.
func names(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("sensor_%03d", i+1))
	}
	return ids
}

// fleet connects registered devices to their response topics.
func (g *gate) fleet(ids []string) *fleet {
	g.Helper()
	f := &fleet{}
	for _, id := range ids {
		c := g.connect(g.device(id), mqtt5)
		g.no(c.Subscribe(g.limit(), c.ResponseTopic(), 1))
		f.devices = append(f.devices, c.Device)
		f.inboxes = append(f.inboxes, c.Inbox())
	}
	return f
}

// settled waits until every message of a load is where it belongs: accepted by the broker, with the backend, and its
// response with its own device and no other, in the order of the messages. Then it stops the broker and checks that
// nothing came twice, but for requests that the backend, with retries, did not answer.
func (g *gate) settled(f *fleet, report *device.Report, retries bool) {
	g.Helper()
	if report.Accepted != report.Sent || report.Refused != 0 {
		g.Errorf("of %d good messages %d were accepted and %d refused", report.Sent, report.Accepted, report.Refused)
	}
	sent := map[string][]string{} // the ids of each device's messages
	n, seen := 0, map[string]bool{}
	_, err := g.backend.WaitFor(g.limit(), func(r *backend.Request) bool {
		if id := r.MessageID(); !seen[id] {
			seen[id] = true
			sent[r.Device] = append(sent[r.Device], id)
			n++
		}
		if string(r.Body) != payload {
			g.Errorf("the backend got %q, the payload is %q", r.Body, payload)
		}
		return n == report.Accepted
	})
	if err != nil {
		g.Fatalf("%d messages of %d reached the backend: %v", n, report.Accepted, err)
	}
	for i, d := range f.devices {
		if _, err := f.inboxes[i].WaitCount(g.limit(), d.ResponseTopic(), len(sent[d.ID])); err != nil {
			g.Fatalf("responses: %v", err)
		}
	}
	g.no(g.broker.Stop())
	if got := g.backend.Count(); !retries && got != n {
		g.Errorf("the backend got %d requests for %d messages", got, n)
	}
	for i := range f.devices {
		f.responses(g, i, sent[f.devices[i].ID])
	}
}

// responses checks the responses that one device got: one for each of these messages, in this order.
func (f *fleet) responses(g *gate, i int, ids []string) {
	g.Helper()
	d := f.devices[i]
	var got []string
	for _, r := range f.inboxes[i].All() {
		var response struct {
			Device    string `json:"device_id"`
			MessageID string `json:"message_id"`
		}
		if err := json.Unmarshal(r.Payload, &response); err != nil || response.Device != d.ID || r.Topic != d.ResponseTopic() {
			g.Errorf("%s got on %q: %q", d.ID, r.Topic, r.Payload)
			continue
		}
		got = append(got, response.MessageID)
	}
	if !slices.Equal(got, ids) {
		g.Errorf("%s: %d responses, which are not one for each of its %d messages in their order", d.ID, len(got), len(ids))
	}
}

// during runs a load until do has returned, a minute at most.
func (g *gate) during(l device.Load, do func(ctx context.Context) error) *device.Report {
	g.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l.Duration = time.Minute
	loading, enough := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		defer enough()
		done <- do(ctx)
	}()
	report, err := l.Run(loading)
	if err != nil {
		g.Errorf("under load: %v", err)
		cancel()
	}
	if err := <-done; err != nil {
		g.Errorf("under load: %v", err)
	}
	if g.Failed() {
		if p := g.broker.Process(); p.Ended() != nil {
			g.Errorf("%v", p.Ended())
		}
		g.FailNow()
	}
	return report
}

func TestPanics(t *testing.T) {
	const each = 200
	ids := []string{"sensor_001", "sensor_002", "sensor_003"} // a line for each refusal is more than one device gets
	g := newGate(t, broker.Options{Devices: ids})
	g.watch()
	var clients []*client
	for _, id := range ids {
		clients = append(clients, g.connect(g.device(id), mqtt5))
	}
	for i := range each {
		c, qos := clients[i%len(clients)], byte(i/len(clients)%3)
		bad := c.Sign(`"inject_fault"`)
		g.refuse(c, c.DataTopic(), qos, bad, "internal") // if not: is the plugin built with the tag faultinject?
		g.accept(c, qos, c.Sign(strconv.Itoa(i)))
	}
	g.nothingElse(ids[0])
	for _, want := range []string{
		`bouncer: internal error, caught; please report it where=message panic="injected fault"`,
		`bouncer:   mosquitto-bouncer/plugin.injectFault(`,
		`bouncer:   mosquitto-bouncer/plugin.(*Gateway).Message(`,
	} {
		// Once for the first, and then not so often that a device could fill the log.
		if n := g.broker.Log().Count(0, broker.Contains(want)); n == 0 || n > each/10 {
			g.Errorf("%d lines with %q in the log for %d panics", n, want, each)
		}
	}
}

// While the backend hangs, the broker's thread must not.
func TestBackendHangs(t *testing.T) {
	ids := names(10)
	g := newGate(t, broker.Options{Devices: ids, Quiet: true, Settings: map[string]any{"backend.timeout": "1s"}})
	f := g.fleet(ids)
	g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
	load := device.Load{Devices: f.devices, Window: 20, Rate: 500, Duration: 3 * time.Second, Payload: []byte(payload)}
	report, err := load.Run(g.limit())
	g.no(err)
	if n := g.backend.Count(); n < len(ids) {
		g.Errorf("%d requests hung while messages came, want one of each of the %d devices at least", n, len(ids))
	}
	g.prompt(report)
	g.backend.Script(backend.OK)
	g.settled(f, report, true)
}

// prompt checks that the publishes of a load were acknowledged without delay. A broker's thread that waited would wait
// for the backend's time-out, here a second, or for the database, a quarter of one at least; what is allowed beyond a
// millisecond is for a busy machine.
func (g *gate) prompt(report *device.Report) {
	g.Helper()
	if report.Accepted < 1000 {
		g.Errorf("%d messages accepted: that is no load", report.Accepted)
	}
	median, p99 := report.Percentile(50), report.Percentile(99)
	if median > 20*time.Millisecond || p99 > 200*time.Millisecond {
		g.Errorf("PUBLISH to PUBACK: median %v, 99th percentile %v, longest %v; want at most 20ms and 200ms",
			median, p99, report.Percentile(100))
	}
	g.Logf("%d messages, PUBLISH to PUBACK: median %v, 99th percentile %v", report.Accepted, median, p99)
}

// Another process may keep the database to itself for seconds: a backup, an import.
func TestDatabaseLocked(t *testing.T) {
	ids := names(4)
	g := newGate(t, broker.Options{Devices: ids, Quiet: true})
	var devices []*device.Device
	for _, id := range ids {
		devices = append(devices, g.device(id))
	}
	late := g.device("late")
	ctx := g.limit()
	db, err := sql.Open("sqlite3", "file:"+g.broker.Path("devices.db")+"?_busy_timeout=5000")
	g.no(err)
	defer db.Close()
	lock, err := db.Conn(ctx)
	g.no(err)
	defer lock.Close()
	mark := g.broker.Log().Mark()
	_, err = lock.ExecContext(ctx, "BEGIN EXCLUSIVE")
	g.no(err)
	_, err = lock.ExecContext(ctx, "INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, ?)",
		late.ID, string(late.Secret), time.Now().Unix())
	g.no(err)

	load := device.Load{Devices: devices, Window: 20, Rate: 500, Duration: 3 * time.Second, Payload: []byte(payload)}
	report, err := load.Run(g.limit())
	g.no(err)
	g.prompt(report)
	if m := late.Sign(payload); g.publish(g.connect(late, mqtt5), late.DataTopic(), 1, m.Bytes).Accepted() {
		g.Error("a device was accepted before its registration was committed")
	}
	if said := g.broker.Log().Find(mark, broker.Contains("bouncer: ", "device database")); len(said) > 1 {
		g.Errorf("the log says of the locked database %d times:\n\t%s", len(said), strings.Join(said, "\n\t"))
	}

	_, err = lock.ExecContext(ctx, "COMMIT")
	g.no(err)
	begin := time.Now()
	_, err = g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: devices changed added=1 "))
	g.no(err)
	if took := time.Since(begin); took > time.Second {
		g.Errorf("a new device took effect %v after the lock, want within a second", took)
	}
	g.accept(g.connect(late, mqtt5), 1, late.Sign(payload))
	if _, err := g.backend.Wait(g.limit(), report.Accepted+1); err != nil {
		g.Error(err)
	}
}
