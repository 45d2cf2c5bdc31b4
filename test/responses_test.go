package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestRejectionNotices: a device gets a notice why a publish was refused, once a second, and no client can cause a notice to
// another device.
func TestRejectionNotices(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, Settings: map[string]any{"rejected.topic": "device/{device_id}/rejected"}})
	c, other := g.Connect(g.Device("sensor_001"), harness.MQTT311), g.Connect(g.Device("sensor_002"), harness.MQTT5)
	for _, c := range []*harness.Client{c, other} {
		g.Must(c.Subscribe(g.Limit(), c.RejectedTopic(), 1))
	}
	told := func(c *harness.Client, n int, m device.Message, reason string) {
		t.Helper()
		got, err := c.Inbox().WaitCount(g.Limit(), c.RejectedTopic(), n)
		g.Must(err)
		var notice struct {
			MessageID *string `json:"message_id"`
			Reason    string
			Time      int64 `json:"server_time"`
		}
		g.Must(json.Unmarshal(got[n-1].Payload, &notice))
		id := ""
		if notice.MessageID != nil {
			id = *notice.MessageID
		}
		if id != m.MessageID || notice.Reason != reason || time.Since(time.Unix(notice.Time, 0)).Abs() > 5*time.Second {
			t.Errorf("the notice is %s", got[n-1].Payload)
		}
	}
	stale := c.Sign("1", device.SignedAt(time.Now().Add(-time.Hour)))
	g.Publish(c, c.DataTopic(), 1, stale.Bytes)
	told(c, 1, stale, "stale")
	for range 20 { // within the second nothing more is told
		g.Publish(c, c.DataTopic(), 1, stale.Bytes)
	}
	time.Sleep(time.Second)
	// By somebody else, on the device's topic: that one is told.
	g.Publish(other, c.DataTopic(), 1, other.Sign("1").Bytes)
	told(other, 1, device.Message{}, "topic_mismatch")
	g.Publish(c, c.DataTopic(), 1, []byte("{}"))
	got, err := c.Inbox().WaitCount(g.Limit(), c.RejectedTopic(), 2)
	g.Must(err)
	if n := len(got); n != 2 {
		t.Errorf("%d notices", n)
	}
	told(c, 2, device.Message{}, "malformed")
}

// TestResponseProperties: MQTT 5's way to ask for a response.
func TestResponseProperties(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	g.Backend.Script(func(r *backend.Request) backend.Answer { return backend.Answer{Status: 201, Body: r.Body} })
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	own := c.ResponseTopic()
	for _, topic := range []string{own, own + "/7/x"} {
		g.Must(c.Subscribe(g.Limit(), topic, 1))
	}
	if err := c.Subscribe(g.Limit(), own+"/+/x", 1); err == nil {
		t.Error("a wildcard below the response topic was granted")
	}
	for _, stranger := range []*harness.Client{c, g.Connect(g.Device("dashboard"), harness.MQTT5)} {
		if ack := g.Publish(stranger, own+"/7/x", 1, []byte("1")); ack.Accepted() {
			t.Errorf("%s could publish a response", stranger.ID)
		}
	}
	for i, test := range []struct{ asked, want string }{
		{"", own}, {own, own}, {own + "/7/x", own + "/7/x"},
		// Not the device's own, or not for this.
		{"device/sensor_002/response", own}, {"device/sensor_001/responses", own}, {c.DataTopic(), own},
		{c.CommandTopic(), own}, {"other", own},
	} {
		m := c.Sign(fmt.Sprintf(`{"n":%d}`, i))
		p := &paho.Publish{Topic: c.DataTopic(), QoS: 1, Payload: m.Bytes, Properties: &paho.PublishProperties{
			CorrelationData: []byte{0, byte(i), 0xff}, ResponseTopic: test.asked,
			User: paho.UserProperties{{Key: "x", Value: "y"}},
		}}
		if ack, err := c.Client.(*device.V5).PublishPacket(g.Limit(), p); err != nil || !ack.Accepted() {
			t.Fatalf("%v %v", ack, err)
		}
		got, err := c.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Payload) })
		g.Must(err)
		if got.Topic != test.want {
			t.Errorf("response topic %q: the response came on %q", test.asked, got.Topic)
		}
		properties := got.Properties
		if !bytes.Equal(properties.CorrelationData, p.Properties.CorrelationData) {
			t.Errorf("correlation data %v", properties.CorrelationData)
		}
		if id, status := properties.User.Get("message_id"), properties.User.Get("status"); id != m.MessageID || status != "201" {
			t.Errorf("message_id %q, status %q", id, status)
		}
	}
	// Without a request for a response there is none of it but the user properties.
	m := c.Sign(`"plain"`)
	g.Publish(c, c.DataTopic(), 1, m.Bytes)
	got, err := c.Inbox().Wait(g.Limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Payload) })
	g.Must(err)
	if got.Properties.CorrelationData != nil || got.Properties.User.Get("message_id") != m.MessageID {
		t.Errorf("%+v", got.Properties)
	}
}

// TestThreadCheck: a library for tests ends the broker when one of its functions is called off its thread, which no other
// test of this package survives. Only such a library has the check.
func TestThreadCheck(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	m := c.Sign(`"inject_thread_fault"`)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	go func() {
		if _, err := c.Publish(ctx, c.DataTopic(), 1, false, m.Bytes); err == nil {
			t.Error("the publish was acknowledged")
		}
	}()
	select {
	case <-g.Broker.Process().Done():
	case <-ctx.Done():
		t.Fatal("the broker survived a call from another thread; is the library built with -tags faultinject?")
	}
	if _, err := g.Broker.WaitLog(ctx, 0, broker.Contains("the broker's function log was called off the broker's thread")); err != nil {
		t.Error(err)
	}
}

// TestConcurrentResponses has 200 devices publish at once: each gets the answers to its own messages, all, in order.
func TestConcurrentResponses(t *testing.T) {
	const devices, messages = 200, 20
	f, g := g200(t, devices)
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		return backend.Answer{Body: fmt.Appendf(nil, `{"for":%q,"of":%s}`, r.Device, r.Body)}
	})
	var all sync.WaitGroup
	for _, c := range f {
		all.Go(func() {
			for n := range messages {
				m := c.Sign(fmt.Sprint(n))
				if ack, err := c.Publish(g.Limit(), c.DataTopic(), 1, false, m.Bytes); err != nil || !ack.Accepted() {
					t.Errorf("%s: %v %v", c.ID, ack, err)
					return
				}
			}
			got, err := c.Inbox().WaitCount(g.Limit(), c.ResponseTopic(), messages)
			if err != nil {
				t.Errorf("%s: %v", c.ID, err)
				return
			}
			for n, r := range got {
				if want := fmt.Sprintf(`{"for":%q,"of":%d}`, c.ID, n); string(r.Payload) != want {
					t.Errorf("%s: response %d is %s", c.ID, n, r.Payload)
				}
			}
			if n := len(c.Inbox().All()); n != messages {
				t.Errorf("%s got %d publishes", c.ID, n)
			}
		})
	}
	all.Wait()
}

// g200 is a gateway with n devices that are connected, each over the one or the other version of MQTT, and subscribed to
// their responses and commands.
func g200(t *testing.T, n int) ([]*harness.Client, *harness.Gateway) {
	t.Helper()
	g := harness.New(t, broker.Options{Devices: harness.DeviceIDs(n), HTTP: true, Quiet: true})
	var clients []*harness.Client
	for i, id := range harness.DeviceIDs(n) {
		c := g.Connect(g.Device(id), harness.Protocol(i%2))
		g.Must(c.Subscribe(g.Limit(), c.ResponseTopic(), 1))
		g.Must(c.Subscribe(g.Limit(), c.CommandTopic(), 1))
		clients = append(clients, c)
	}
	return clients, g
}

// TestResponsesAreNotLost has devices on live connections publish 5,000 messages a second in all, or as many as this
// machine takes; every one that was accepted is answered.
func TestResponsesAreNotLost(t *testing.T) {
	const devices = 50
	clients, g := g200(t, devices)
	var sent [devices]atomic.Int64
	const rate, seconds = 5000, 4
	begin := time.Now()
	var all sync.WaitGroup
	for i, c := range clients {
		const window = 8
		for w := range window {
			all.Go(func() {
				every := time.NewTicker(devices * window * time.Second / rate)
				defer every.Stop()
				for time.Since(begin) < seconds*time.Second && !t.Failed() {
					<-every.C
					m := c.Sign(fmt.Sprintf(`{"worker":%d}`, w))
					ack, err := c.Publish(g.Limit(), c.DataTopic(), 1, false, m.Bytes)
					if err != nil || !ack.Accepted() {
						t.Errorf("%s: %v %v", c.ID, ack, err)
						return
					}
					sent[i].Add(1)
				}
			})
		}
	}
	all.Wait()
	took := time.Since(begin)
	total := int64(0)
	for i, c := range clients {
		n := int(sent[i].Load())
		total += int64(n)
		if _, err := c.Inbox().WaitCount(g.Limit(), c.ResponseTopic(), n); err != nil {
			t.Errorf("%s: %v", c.ID, err)
		}
	}
	t.Logf("%d messages, %.0f a second, were all answered", total, float64(total)/took.Seconds())
}

// TestResponses has the backend's answers come back to the device they are for, and to it alone.
func TestResponses(t *testing.T) {
	responses(harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}}))
}

// responses has two devices publish and hears the answers.
func responses(g *harness.Gateway) {
	g.Watch()
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		return backend.Answer{Body: fmt.Appendf(nil, "%s says\x00\xff %s", r.Device, r.Body)}
	})
	for _, p := range []harness.Protocol{harness.MQTT5, harness.MQTT311} {
		g.Sub(p.String(), func(g *harness.Gateway) {
			one, two := g.Connect(g.Device("sensor_001"), p), g.Connect(g.Device("sensor_002"), p)
			g.Must(one.Subscribe(g.Limit(), one.ResponseTopic(), 1))
			g.Must(two.Subscribe(g.Limit(), two.ResponseTopic(), 2))
			for n := 1; n <= 5; n++ {
				for _, c := range []*harness.Client{one, two} {
					payload := fmt.Sprintf("[%d,%d]", p, n)
					g.Accept(c, byte(n%3), c.Sign(payload))
					got, want := g.Response(c, n), c.ID+" says\x00\xff "+payload
					if string(got.Payload) != want || got.QoS != 1 || got.Retain {
						g.Errorf("got %q with QoS %d, retain %v, want %q with QoS 1", got.Payload, got.QoS, got.Retain, want)
					}
				}
			}
			for _, c := range []*harness.Client{one, two} {
				if all := c.Inbox().All(); len(all) != 5 {
					g.Errorf("%s got %d messages, want its 5 responses: %v", c.ID, len(all), all)
				}
			}
		})
	}
	g.NothingElse("sensor_001")
	for _, id := range []string{"sensor_001", "sensor_002"} {
		for _, r := range g.Monitor.Inbox().On("device/" + id + "/response") {
			if !strings.HasPrefix(string(r.Payload), id+" says") {
				g.Errorf("on %s: %q", r.Topic, r.Payload)
			}
		}
	}
}

// TestNoResponse has the answers that are none of the device's business. The response to the message behind each shows
// that nothing came in its place.
func TestNoResponse(t *testing.T) {
	// A redirection of all there is would count as the backend's state.
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"backend.fatal_statuses": []int{http.StatusFound}}})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.ResponseTopic(), 1))
	longest := bytes.Repeat([]byte("x"), 64<<10)
	for i, answer := range []backend.Answer{
		{Status: http.StatusOK},
		{Status: http.StatusAccepted},
		{Status: http.StatusNoContent},
		{Status: http.StatusOK, Body: append(longest, 'x')},
		{Status: http.StatusFound, Header: http.Header{"Location": {"/elsewhere"}}, Body: []byte("found")},
		{Status: http.StatusUnprocessableEntity, Body: []byte("not like this")},
	} {
		silent := c.Sign("1")
		g.Backend.Script(func(r *backend.Request) backend.Answer {
			if r.MessageID() == silent.MessageID {
				return answer
			}
			return backend.Answer{Status: http.StatusCreated, Body: longest}
		})
		g.Accept(c, 1, silent)
		g.Accept(c, 1, c.Sign("2"))
		if got := g.Response(c, i+1); !bytes.Equal(got.Payload, longest) {
			t.Errorf("status %d, %d bytes: got the response %.100q", answer.Status, len(answer.Body), got.Payload)
		}
	}
	g.NothingElse("sensor_001")
}

// TestResponseTime measures the time from PUBACK to response while the broker is idle. Without the wake-up its thread
// would sleep for 100 ms first; with Nagle's algorithm the response would wait for the acknowledgement of the PUBACK's
// segment, some 43 ms.
func TestResponseTime(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.ResponseTopic(), 1))
	var took []time.Duration
	for n := 1; n <= 20; n++ {
		m := c.Sign("22")
		ack := g.Publish(c, c.DataTopic(), 1, m.Bytes)
		acknowledged := time.Now()
		if !ack.Accepted() {
			t.Fatal(ack)
		}
		took = append(took, g.Response(c, n).At.Sub(acknowledged))
	}
	slices.Sort(took)
	t.Logf("PUBACK to response: least %v, median %v, most %v", took[0], took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > 40*time.Millisecond {
		t.Errorf("PUBACK to response: median %v, want at most 40ms", median)
	}
}
