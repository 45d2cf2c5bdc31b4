package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/device"
)

// Payload is what the loads send.
const Payload = `{"temperature":22.5,"humidity":60}`

// A Fleet is a number of registered devices; each has a connection that takes its responses.
type Fleet struct {
	Devices []*device.Device
	Inboxes []*device.Inbox
}

// DeviceIDs are the ids of n devices.
func DeviceIDs(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("sensor_%03d", i+1))
	}
	return ids
}

// Fleet connects registered devices to their response topics.
func (g *Gateway) Fleet(ids []string) *Fleet {
	g.Helper()
	f := &Fleet{}
	for _, id := range ids {
		c := g.Connect(g.Device(id), MQTT5)
		g.Must(c.Subscribe(g.Limit(), c.ResponseTopic(), 1))
		f.Devices = append(f.Devices, c.Device)
		f.Inboxes = append(f.Inboxes, c.Inbox())
	}
	return f
}

// Settled waits until every message of a load is where it belongs: accepted by the broker, with the backend, and its
// response with its own device and no other, in the order of the messages. Then it stops the broker and checks that
// nothing came twice, but for requests that the backend, with retries, did not answer.
func (g *Gateway) Settled(f *Fleet, report *device.Report, retries bool) {
	g.Helper()
	if report.Accepted != report.Sent || report.Refused != 0 {
		g.Errorf("of %d good messages %d were accepted and %d refused", report.Sent, report.Accepted, report.Refused)
	}
	sent := map[string][]string{} // the ids of each device's messages
	n, seen := 0, map[string]bool{}
	_, err := g.Backend.WaitFor(g.Limit(), func(r *backend.Request) bool {
		if id := r.MessageID(); !seen[id] {
			seen[id] = true
			sent[r.Device] = append(sent[r.Device], id)
			n++
		}
		if string(r.Body) != Payload {
			g.Errorf("the backend got %q, the payload is %q", r.Body, Payload)
		}
		return n == report.Accepted
	})
	if err != nil {
		g.Fatalf("%d messages of %d reached the backend: %v", n, report.Accepted, err)
	}
	for i, d := range f.Devices {
		if _, err := f.Inboxes[i].WaitCount(g.Limit(), d.ResponseTopic(), len(sent[d.ID])); err != nil {
			g.Fatalf("responses: %v", err)
		}
	}
	g.Must(g.Broker.Stop())
	if got := g.Backend.Count(); !retries && got != n {
		g.Errorf("the backend got %d requests for %d messages", got, n)
	}
	for i := range f.Devices {
		f.responses(g, i, sent[f.Devices[i].ID])
	}
}

// responses checks the responses that one device got: one for each of these messages, in this order.
func (f *Fleet) responses(g *Gateway, i int, ids []string) {
	g.Helper()
	d := f.Devices[i]
	var got []string
	for _, r := range f.Inboxes[i].All() {
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

// During runs a load until do has returned, a minute at most.
func (g *Gateway) During(l device.Load, do func(ctx context.Context) error) *device.Report {
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
		if p := g.Broker.Process(); p.Ended() != nil {
			g.Errorf("%v", p.Ended())
		}
		g.FailNow()
	}
	return report
}
