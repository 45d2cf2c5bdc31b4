package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"mosquitto-bouncer/test/backend"
	"mosquitto-bouncer/test/broker"
	"mosquitto-bouncer/test/device"
)

// A seen is an answer of the HTTP listener.
type seen struct {
	Status int
	Header http.Header
	Text   []byte

	ID, URL, State, Reason, Detail string
	Result, Command                json.RawMessage
	Sent, Finished                 *time.Time
	Repeated                       bool
}

// ask sends a request with the token, unless the header names another. Safe for concurrent use.
func (g *gate) ask(method, path, body string, header ...string) seen {
	g.Helper()
	s, err := ask(g.limit(), http.DefaultClient, "http://"+g.broker.HTTPAddr(), method, path, body, header...)
	if err != nil {
		g.Errorf("%s %s: %v", method, path, err)
	}
	return s
}

func ask(ctx context.Context, client *http.Client, base, method, path, body string, header ...string) (s seen, err error) {
	r, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		return s, err
	}
	r.Header.Set("Authorization", "Bearer "+broker.HTTPToken)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := client.Do(r)
	if err != nil {
		return s, err
	}
	defer answer.Body.Close()
	s.Status, s.Header = answer.StatusCode, answer.Header
	if s.Text, err = io.ReadAll(answer.Body); err != nil {
		return s, err
	}
	if strings.Contains(answer.Header.Get("Content-Type"), "json") {
		var fields struct {
			ID, URL, State, Reason, Detail string
			Result, Command                json.RawMessage
			Sent, Finished                 *time.Time
			Repeated                       bool
		}
		err = json.Unmarshal(s.Text, &fields)
		s.ID, s.URL, s.State, s.Reason, s.Detail, s.Repeated = fields.ID, fields.URL, fields.State, fields.Reason, fields.Detail, fields.Repeated
		s.Result, s.Command, s.Sent, s.Finished = fields.Result, fields.Command, fields.Sent, fields.Finished
	}
	return s, err
}

// state waits until a command is in a state.
func (g *gate) state(id, want string) seen {
	g.Helper()
	var s seen
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s = g.ask("GET", "/v1/commands/"+id, ""); s.State == want {
			return s
		}
	}
	g.Errorf("command %s is %q, not %q", id, s.State, want)
	return s
}

// obey has a device take commands in the background until the test ends.
func (g *gate) obey(c *client, do func(device.Command) (string, string)) *refusals {
	g.Helper()
	g.no(c.Subscribe(g.limit(), c.CommandTopic(), 1))
	ctx, cancel := context.WithCancel(context.Background())
	r := new(refusals)
	var done sync.WaitGroup
	done.Go(func() {
		if err := c.Obey(ctx, c.Client, do, r.add); err != nil && ctx.Err() == nil {
			g.Errorf("%s obeys: %v", c.ID, err)
		}
	})
	r.end = func() { cancel(); done.Wait() }
	g.Cleanup(r.end)
	return r
}

// refusals counts what a device made of the commands that it got.
type refusals struct {
	end func() // has the device obey no more; before its connection ends

	mu   sync.Mutex
	errs []error
}

func (r *refusals) add(_ device.Command, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *refusals) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.errs)
}

// TestCommand sends a command to a device and has its answer come back, in either version of MQTT and with each status.
func TestCommand(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	g.watch()
	for _, p := range []protocol{mqtt311, mqtt5} {
		g.sub(p.String(), func(g *gate) {
			c := g.connect(g.device("sensor_001"), p)
			taken := g.obey(c, func(c device.Command) (string, string) { return strings.Trim(string(c.Body), `"`), `{"echo": [1.0]}` })
			for _, status := range []string{"succeeded", "failed", "rejected"} {
				s := g.ask("POST", "/v1/devices/sensor_001/commands?wait=10s", `"`+status+`"`)
				if s.Status != 200 || s.State != status || string(s.Result) != `{"echo":[1.0]}` || s.Sent == nil || s.Finished == nil {
					t.Errorf("%d %s", s.Status, s.Text)
				}
				if s.URL != "/v1/commands/"+s.ID || s.Header.Get("Location") != s.URL {
					t.Errorf("the URL is %q, Location %q", s.URL, s.Header.Get("Location"))
				}
				if again := g.ask("GET", s.URL, ""); again.Status != 200 || again.State != status || string(again.Command) != `"`+status+`"` {
					t.Errorf("%d %s", again.Status, again.Text)
				}
			}
			if errs := taken.all(); len(errs) != 3 || errors.Join(errs...) != nil {
				t.Errorf("the device made of the commands: %v", errs)
			}
		})
	}
	if n := g.backend.Count(); n != 0 {
		t.Errorf("the backend got %d answers to commands as data", n)
	}
	c := g.connect(g.device("sensor_001"), mqtt5)
	// What a device answers passes the gate like data.
	ack := g.publish(c, c.ResultTopic(), 1, []byte(`{"command_id":"x","status":"failed"}`))
	if ack.Accepted() {
		t.Error("an unsigned answer was accepted")
	}
	m := c.Answer("01234567-89ab-8def-8123-456789abcdef", "failed", "")
	if ack := g.publish(c, c.ResultTopic(), 1, m.Bytes); !ack.Accepted() {
		t.Error("a signed answer was refused")
	}
	if ack := g.publish(c, c.ResultTopic(), 1, m.Bytes); ack.Accepted() {
		t.Error("a replayed answer was accepted")
	}
	if ack := g.publish(g.connect(g.device("monitor"), mqtt5), c.CommandTopic(), 1, []byte("1")); ack.Accepted() {
		t.Error("a client could publish a command")
	}
}

// TestCommandIsNoData: a command's envelope, sent back to the gateway as a message of the device, is refused, although
// the signature is the device's.
func TestCommandIsNoData(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.no(c.Subscribe(g.limit(), c.CommandTopic(), 1))
	s := g.ask("POST", "/v1/devices/sensor_001/commands", `{"temperature":99}`)
	if s.Status != 202 {
		t.Fatalf("%d %s", s.Status, s.Text)
	}
	got, err := c.Inbox().WaitCount(g.limit(), c.CommandTopic(), 1)
	g.no(err)
	for _, topic := range []string{c.DataTopic(), c.ResultTopic()} {
		mark := g.broker.Log().Mark()
		if ack := g.publish(c, topic, 1, got[0].Payload); ack.Code != device.NotAuthorized {
			t.Errorf("a command as a message on %s: %v", topic, ack)
		}
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused", "topic="+topic+" ", "reason=malformed", "message_id="+s.ID))
		g.no(err)
	}
	// And the other way round: what the device has signed is no command, even with the right payload.
	forged := c.Sign(fmt.Sprintf(`{"command":"open","expires":%d}`, time.Now().Add(time.Hour).Unix()))
	v := c.NewCommandVerifier()
	if _, err := v.Verify(forged.Bytes, time.Now()); !errors.Is(err, device.ErrCommandUnreadable) {
		t.Errorf("a message of the device's as a command: %v", err)
	}
	if _, err := v.Verify(got[0].Payload, time.Now()); err != nil {
		t.Errorf("the command itself: %v", err)
	}
	if _, err := v.Verify(got[0].Payload, time.Now()); !errors.Is(err, device.ErrCommandReplayed) {
		t.Errorf("the command a second time: %v", err)
	}
	if _, err := g.device("sensor_001").NewCommandVerifier().Verify(got[0].Payload, time.Now().Add(time.Hour)); !errors.Is(err, device.ErrCommandExpired) {
		t.Errorf("the command an hour later: %v", err)
	}
	tampered := bytes.Replace(got[0].Payload, []byte("99"), []byte("98"), 1)
	if _, err := v.Verify(tampered, time.Now()); !errors.Is(err, device.ErrCommandForged) {
		t.Errorf("the command with another body: %v", err)
	}
}

// TestCommandsWait: a device that is away gets its commands when it comes back, from its session or without one, but
// none whose time is up; also when the broker was killed meanwhile.
func TestCommandsWait(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"session", "clean", "v5"}, HTTP: true, Persistence: true})
	connect := func(id string) *client {
		d := g.device(id)
		c := &client{Device: d, username: id, protocol: mqtt311}
		var err error
		if id == "v5" {
			c.protocol = mqtt5
			c.Client, err = d.ConnectV5(g.limit(), func(o *paho.Connect) {
				o.ClientID, o.CleanStart = id, false
				o.Properties = &paho.ConnectProperties{SessionExpiryInterval: new(uint32(3600))}
			})
		} else {
			c.Client, err = d.ConnectV3(g.limit(), func(o *mqtt.ClientOptions) { o.SetClientID(id).SetCleanSession(id == "clean") })
		}
		g.no(err)
		return c
	}
	for _, id := range []string{"session", "v5"} {
		c := connect(id)
		g.no(c.Subscribe(g.limit(), c.CommandTopic(), 1))
		g.no(c.Close())
	}
	late := map[string]string{}
	good := map[string]string{}
	for _, id := range []string{"session", "clean", "v5"} {
		short := g.ask("POST", "/v1/devices/"+id+"/commands?ttl=2s", `"short"`)
		long := g.ask("POST", "/v1/devices/"+id+"/commands?ttl=10m", `"long"`)
		if short.Status != 202 || long.Status != 202 {
			t.Fatalf("%s %s", short.Text, long.Text)
		}
		late[id], good[id] = short.ID, long.ID
	}
	for _, id := range late {
		g.state(id, "expired")
	}
	check := func() {
		t.Helper()
		for _, id := range []string{"session", "clean", "v5"} {
			c := connect(id)
			obeying := g.obey(c, func(c device.Command) (string, string) { return "succeeded", string(c.Body) })
			if s := g.state(good[id], "succeeded"); string(s.Result) != `"long"` {
				t.Errorf("%s: %s", id, s.Text)
			}
			for _, r := range c.Inbox().On(c.CommandTopic()) {
				if strings.Contains(string(r.Payload), "short") {
					t.Errorf("%s got an expired command", id)
				}
			}
			obeying.end()
			g.no(c.Close())
		}
	}
	check()
	// Once more over a SIGKILL, after which only the plugin knows of the commands.
	for id := range good {
		good[id] = g.ask("POST", "/v1/devices/"+id+"/commands?ttl=10m", `"long"`).ID
	}
	g.no(g.broker.Process().Kill())
	g.no(g.broker.Start())
	check()
}

// TestCommandErrors asks for each error of the HTTP interface.
func TestCommandErrors(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "off"}, HTTP: true})
	g.setDisabled("off", true)
	for s := g.ask("POST", "/v1/devices/off/commands", "1"); s.Status == 202; s = g.ask("POST", "/v1/devices/off/commands", "1") {
		time.Sleep(20 * time.Millisecond) // the registry follows its database within a second
	}
	const path = "/v1/devices/sensor_001/commands"
	large := `"` + strings.Repeat("x", 64<<10) + `"`
	for _, c := range []struct {
		method, path, body string
		status             int
		reason             string
		header             []string
	}{
		{"POST", path, "1", 401, "unauthorized", []string{"Authorization", ""}},
		{"POST", path, "1", 401, "unauthorized", []string{"Authorization", "Bearer " + broker.HTTPToken + "x"}},
		{"POST", path, "1", 401, "unauthorized", []string{"Authorization", "Bearer " + broker.HTTPToken[1:]}},
		{"POST", path, "1", 401, "unauthorized", []string{"Authorization", "Basic " + broker.HTTPToken}},
		{"GET", "/metrics", "", 401, "unauthorized", []string{"Authorization", "Bearer x"}},
		{"GET", "/nothing", "", 401, "unauthorized", []string{"Authorization", "Bearer x"}},
		{"GET", "/nothing", "", 404, "no_such_path", nil},
		{"POST", "/v1/devices/nobody/commands", "1", 404, "no_such_device", nil},
		{"POST", "/v1/devices/sensor_001%2f/commands", "1", 404, "no_such_device", nil},
		{"GET", "/v1/commands/01234567-89ab-8def-8123-456789abcdef", "", 404, "no_such_command", nil},
		{"GET", "/v1/commands/x", "", 404, "no_such_command", nil},
		{"GET", path, "", 405, "method_not_allowed", nil},
		{"DELETE", "/v1/commands/x", "", 405, "method_not_allowed", nil},
		{"POST", path, large, 413, "too_large", nil},
		{"POST", path, "1", 415, "unsupported_media_type", []string{"Content-Type", "text/plain"}},
		{"POST", path, "1", 415, "unsupported_media_type", []string{"Content-Encoding", "gzip"}},
		{"POST", path, "", 400, "bad_json", nil},
		{"POST", path, `1},"x":{`, 400, "bad_json", nil},
		{"POST", path, `{"a":1,"a":2}`, 400, "bad_json", nil},
		{"POST", path, strings.Repeat("[", 63) + strings.Repeat("]", 63), 400, "bad_json", nil},
		{"POST", path + "?ttl=1s", "1", 400, "bad_ttl", nil},
		{"POST", path + "?ttl=soon", "1", 400, "bad_ttl", nil},
		{"POST", path + "?wait=1h", "1", 400, "bad_wait", nil},
		{"POST", path, "1", 400, "bad_idempotency_key", []string{"Idempotency-Key", strings.Repeat("x", 256)}},
		{"POST", "/v1/devices/off/commands", "1", 409, "device_disabled", nil},
	} {
		s := g.ask(c.method, c.path, c.body, c.header...)
		if s.Status != c.status || s.Reason != c.reason || s.Header.Get("Content-Type") != "application/problem+json" || s.Detail == "" {
			t.Errorf("%s %s %.20s %.40q: %d %q, want %d %s", c.method, c.path, c.body, c.header, s.Status, s.Text, c.status, c.reason)
		}
		if strings.Contains(string(s.Text), broker.HTTPToken) {
			t.Errorf("the token is in %s", s.Text)
		}
	}
	first := g.ask("POST", path, `{"a":1}`, "Idempotency-Key", "k")
	again := g.ask("POST", path, `{"a":1}`, "Idempotency-Key", "k")
	if first.Status != 202 || again.Status != 202 || again.ID != first.ID || first.Repeated || !again.Repeated {
		t.Errorf("one key twice: %s and %s", first.Text, again.Text)
	}
	if s := g.ask("POST", path, `{"a":2}`, "Idempotency-Key", "k"); s.Status != 422 || s.Reason != "idempotency_key_reused" {
		t.Errorf("a key for another body: %d %s", s.Status, s.Text)
	}
	for n := 1; ; n++ {
		s := g.ask("POST", path, "1")
		if s.Status == 429 {
			if s.Reason != "device_busy" || s.Header.Get("Retry-After") == "" || n != 256 {
				t.Errorf("after %d: %s", n, s.Text)
			}
			break
		}
		if s.Status != 202 || n > 300 {
			t.Fatalf("command %d: %d %s", n, s.Status, s.Text)
		}
	}
}

// TestSlowClients: clients that send their requests a byte at a time, or nothing at all, keep nobody out, and are cut
// off.
func TestSlowClients(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	const slow = 300
	begin := time.Now()
	var ended sync.WaitGroup
	var answered atomic.Int64
	for i := range slow {
		conn, err := net.Dial("tcp", g.broker.HTTPAddr())
		g.no(err)
		t.Cleanup(func() { _ = conn.Close() })
		ended.Go(func() {
			for !t.Failed() && i%3 > 0 { // two of three never fall silent
				if _, err := conn.Write([]byte("POST /v1/devices/x/commands HTTP/1.1\r\nContent-Length: 60000\r\nX: "[i%5:][:1])); err != nil {
					break
				}
				_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if n, err := conn.Read(make([]byte, 100)); n > 0 {
					answered.Add(1)
					break
				} else if !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
					break
				}
			}
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			_, err := io.Copy(io.Discard, conn)
			if isTimeout(err) {
				t.Error("a slow client was not cut off")
			}
		})
	}
	for range 20 {
		at := time.Now()
		if s := g.ask("POST", "/v1/devices/sensor_001/commands", "1"); s.Status != 202 {
			t.Errorf("beside slow clients: %d %s", s.Status, s.Text)
		}
		if took := time.Since(at); took > 2*time.Second {
			t.Errorf("beside slow clients an answer took %v", took)
		}
	}
	ended.Wait()
	t.Logf("%d slow clients were cut off within %v, %d with an answer", slow, time.Since(begin).Round(time.Millisecond), answered.Load())
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// TestRejectionNotices: a device is told why a publish was refused, once a second, and nobody can have it told of what
// it did not do.
func TestRejectionNotices(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "sensor_002"}, Settings: map[string]any{"rejected.topic": "device/{device_id}/rejected"}})
	c, other := g.connect(g.device("sensor_001"), mqtt311), g.connect(g.device("sensor_002"), mqtt5)
	for _, c := range []*client{c, other} {
		g.no(c.Subscribe(g.limit(), c.RejectedTopic(), 1))
	}
	told := func(c *client, n int, m device.Message, reason string) {
		t.Helper()
		got, err := c.Inbox().WaitCount(g.limit(), c.RejectedTopic(), n)
		g.no(err)
		var notice struct {
			MessageID *string `json:"message_id"`
			Reason    string
			Time      int64 `json:"server_time"`
		}
		g.no(json.Unmarshal(got[n-1].Payload, &notice))
		id := ""
		if notice.MessageID != nil {
			id = *notice.MessageID
		}
		if id != m.MessageID || notice.Reason != reason || time.Since(time.Unix(notice.Time, 0)).Abs() > 5*time.Second {
			t.Errorf("the notice is %s", got[n-1].Payload)
		}
	}
	stale := c.Sign("1", device.SignedAt(time.Now().Add(-time.Hour)))
	g.publish(c, c.DataTopic(), 1, stale.Bytes)
	told(c, 1, stale, "stale")
	for range 20 { // within the second nothing more is told
		g.publish(c, c.DataTopic(), 1, stale.Bytes)
	}
	time.Sleep(time.Second)
	// By somebody else, on the device's topic: that one is told.
	g.publish(other, c.DataTopic(), 1, other.Sign("1").Bytes)
	told(other, 1, device.Message{}, "topic_mismatch")
	g.publish(c, c.DataTopic(), 1, []byte("{}"))
	got, err := c.Inbox().WaitCount(g.limit(), c.RejectedTopic(), 2)
	g.no(err)
	if n := len(got); n != 2 {
		t.Errorf("%d notices", n)
	}
	told(c, 2, device.Message{}, "malformed")
}

// TestResponseProperties: MQTT 5's way to ask for a response.
func TestResponseProperties(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	g.backend.Script(func(r *backend.Request) backend.Answer { return backend.Answer{Status: 201, Body: r.Body} })
	c := g.connect(g.device("sensor_001"), mqtt5)
	own := c.ResponseTopic()
	for _, topic := range []string{own, own + "/7/x"} {
		g.no(c.Subscribe(g.limit(), topic, 1))
	}
	if err := c.Subscribe(g.limit(), own+"/+/x", 1); err == nil {
		t.Error("a wildcard below the response topic was granted")
	}
	for _, stranger := range []*client{c, g.connect(g.device("dashboard"), mqtt5)} {
		if ack := g.publish(stranger, own+"/7/x", 1, []byte("1")); ack.Accepted() {
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
		if ack, err := c.Client.(*device.V5).PublishPacket(g.limit(), p); err != nil || !ack.Accepted() {
			t.Fatalf("%v %v", ack, err)
		}
		got, err := c.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Payload) })
		g.no(err)
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
	g.publish(c, c.DataTopic(), 1, m.Bytes)
	got, err := c.Inbox().Wait(g.limit(), func(r device.Received) bool { return bytes.Equal(r.Payload, m.Payload) })
	g.no(err)
	if got.Properties.CorrelationData != nil || got.Properties.User.Get("message_id") != m.MessageID {
		t.Errorf("%+v", got.Properties)
	}
}

// TestThreadCheck: a library for tests ends the broker when one of its functions is called off its thread, which no other
// test of this package survives. Only such a library has the check.
func TestThreadCheck(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	c := g.connect(g.device("sensor_001"), mqtt5)
	m := c.Sign(`"inject_thread_fault"`)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		if _, err := c.Publish(ctx, c.DataTopic(), 1, false, m.Bytes); err == nil {
			t.Error("the publish was acknowledged")
		}
	}()
	select {
	case <-g.broker.Process().Done():
	case <-ctx.Done():
		t.Fatal("the broker survived a call from another thread; is the library built with -tags faultinject?")
	}
	if _, err := g.broker.WaitLog(ctx, 0, broker.Contains("the broker's function log was called off the broker's thread")); err != nil {
		t.Error(err)
	}
}

// TestConcurrentResponses has 200 devices publish at once: each gets the answers to its own messages, all, in order.
func TestConcurrentResponses(t *testing.T) {
	const devices, messages = 200, 20
	f, g := g200(t, devices)
	g.backend.Script(func(r *backend.Request) backend.Answer {
		return backend.Answer{Body: fmt.Appendf(nil, `{"for":%q,"of":%s}`, r.Device, r.Body)}
	})
	var all sync.WaitGroup
	for _, c := range f {
		all.Go(func() {
			for n := range messages {
				m := c.Sign(fmt.Sprint(n))
				if ack, err := c.Publish(g.limit(), c.DataTopic(), 1, false, m.Bytes); err != nil || !ack.Accepted() {
					t.Errorf("%s: %v %v", c.ID, ack, err)
					return
				}
			}
			got, err := c.Inbox().WaitCount(g.limit(), c.ResponseTopic(), messages)
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

// g200 is a gate with n devices that are connected, each over the one or the other version of MQTT, and subscribed to
// their responses and commands.
func g200(t *testing.T, n int) ([]*client, *gate) {
	t.Helper()
	g := newGate(t, broker.Options{Devices: names(n), HTTP: true, Quiet: true})
	var clients []*client
	for i, id := range names(n) {
		c := g.connect(g.device(id), protocol(i%2))
		g.no(c.Subscribe(g.limit(), c.ResponseTopic(), 1))
		g.no(c.Subscribe(g.limit(), c.CommandTopic(), 1))
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
					ack, err := c.Publish(g.limit(), c.DataTopic(), 1, false, m.Bytes)
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
		if _, err := c.Inbox().WaitCount(g.limit(), c.ResponseTopic(), n); err != nil {
			t.Errorf("%s: %v", c.ID, err)
		}
	}
	t.Logf("%d messages, %.0f a second, were all answered", total, float64(total)/took.Seconds())
}

// TestCommandsDoNotSlowPublishes compares the time that a publish takes while nothing else happens with the one while a
// backend sends 1,000 commands a second, or as many as this machine takes, that the devices answer.
func TestCommandsDoNotSlowPublishes(t *testing.T) {
	const devices, rate, seconds = 50, 1000, 5
	clients, g := g200(t, devices+1)
	publisher, clients := clients[devices], clients[:devices]
	measure := func(during time.Duration) (median, p99 time.Duration) {
		var took []time.Duration
		for begin := time.Now(); time.Since(begin) < during; time.Sleep(5 * time.Millisecond) {
			m := publisher.Sign("1")
			at := time.Now()
			g.publish(publisher, publisher.DataTopic(), 1, m.Bytes)
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	idle, idle99 := measure(2 * time.Second)
	for _, c := range clients {
		g.obey(c, func(device.Command) (string, string) { return "succeeded", "" })
	}
	pool := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer pool.CloseIdleConnections()
	var taken atomic.Int64
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
	defer cancel()
	const senders = 32
	for s := range senders {
		all.Go(func() {
			every := time.NewTicker(senders * time.Second / rate)
			defer every.Stop()
			for n := s; ctx.Err() == nil; n += senders {
				<-every.C
				a, err := ask(context.Background(), pool, "http://"+g.broker.HTTPAddr(), "POST", "/v1/devices/"+clients[n%devices].ID+"/commands", `{"n":1}`)
				if err != nil || a.Status != 202 {
					t.Errorf("%v %d %s", err, a.Status, a.Text)
					return
				}
				taken.Add(1)
			}
		})
	}
	busy, busy99 := measure(seconds * time.Second)
	all.Wait()
	deadline := time.Now().Add(patience)
	done := fmt.Sprintf("bouncer_commands{state=\"succeeded\"} %d\n", taken.Load())
	for ; !strings.Contains(string(g.ask("GET", "/metrics", "").Text), done); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d commands were taken; not all were answered", taken.Load())
		}
	}
	t.Logf("%.0f commands a second, all answered; a publish took %v (p99 %v) before and %v (p99 %v) meanwhile",
		float64(taken.Load())/seconds, idle, idle99, busy, busy99)
	// Load, devices and broker share the machine, which is what most of the difference is.
	if busy > 25*time.Millisecond {
		t.Errorf("beside the commands a publish took %v in the median", busy)
	}
}

// TestHealthAndMetrics reads both, with and without the token.
func TestHealthAndMetrics(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.accept(c, 1, c.Sign("1"))
	g.refuse(c, c.DataTopic(), 1, device.Message{DeviceID: c.ID, Bytes: []byte("{}")}, "malformed")
	g.ask("POST", "/v1/devices/sensor_001/commands", "1")
	if s := g.ask("GET", "/healthz", "", "Authorization", ""); s.Status != 200 || string(s.Text) != "{\"status\":\"ok\"}\n" {
		t.Errorf("health: %d %s", s.Status, s.Text)
	}
	text := string(g.ask("GET", "/metrics", "").Text)
	for _, want := range []string{
		`bouncer_publishes_total{verdict="accepted"} 1`, `bouncer_publishes_total{verdict="malformed"} 1`,
		"bouncer_messages_accepted_total 1", "bouncer_replay_ids 1", "bouncer_registry_devices 1",
		"bouncer_commands_created_total 1", `bouncer_build_info{version="`, `bouncer_callback_seconds_bucket{callback="access",le="1e-06"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "sensor_001") {
		t.Error("a device's id is in the metrics")
	}
	// Without its database the gateway goes on, and says so.
	g.no(os.Rename(g.broker.Path("devices.db"), g.broker.Path("moved.db")))
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		s := g.ask("GET", "/healthz", "")
		if s.Status == 503 && strings.Contains(s.Detail, "device database") {
			if s := g.ask("GET", "/healthz", "", "Authorization", ""); s.Status != 503 || strings.Contains(s.Detail, "database") {
				t.Errorf("without the token: %s", s.Text)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("without its database: %d %s", s.Status, s.Text)
		}
	}
}
