package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	library "mosquitto-bouncer/device/go"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// obey has a device take commands in the background until the test ends.
func obey(g *harness.Gateway, c *harness.Client, do func(library.Command) (string, string)) *refusals {
	g.Helper()
	g.Must(c.Subscribe(g.Limit(), c.CommandTopic(), 1))
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

func (r *refusals) add(_ library.Command, err error) {
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
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	g.Watch()
	for _, p := range []harness.Protocol{harness.MQTT311, harness.MQTT5} {
		g.Sub(p.String(), func(g *harness.Gateway) {
			c := g.Connect(g.Device("sensor_001"), p)
			taken := obey(g, c, func(c library.Command) (string, string) { return strings.Trim(string(c.Body), `"`), `{"echo": [1.0]}` })
			for _, status := range []string{"succeeded", "failed", "rejected"} {
				s := g.Ask("POST", "/v1/devices/sensor_001/commands?wait=10s", `"`+status+`"`)
				if s.Status != 200 || s.State != status || string(s.Result) != `{"echo":[1.0]}` || s.Sent == nil || s.Finished == nil {
					t.Errorf("%d %s", s.Status, s.Text)
				}
				if s.URL != "/v1/commands/"+s.ID || s.Header.Get("Location") != s.URL {
					t.Errorf("the URL is %q, Location %q", s.URL, s.Header.Get("Location"))
				}
				if again := g.Ask("GET", s.URL, ""); again.Status != 200 || again.State != status || string(again.Command) != `"`+status+`"` {
					t.Errorf("%d %s", again.Status, again.Text)
				}
			}
			if errs := taken.all(); len(errs) != 3 || errors.Join(errs...) != nil {
				t.Errorf("the device made of the commands: %v", errs)
			}
		})
	}
	if n := g.Backend.Count(); n != 0 {
		t.Errorf("the backend got %d answers to commands as data", n)
	}
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	// What a device answers is checked as data is.
	ack := g.Publish(c, c.ResultTopic(), 1, []byte(`{"command_id":"x","status":"failed"}`))
	if ack.Accepted() {
		t.Error("an unsigned answer was accepted")
	}
	m := c.Answer("01234567-89ab-8def-8123-456789abcdef", "failed", "")
	if ack := g.Publish(c, c.ResultTopic(), 1, m.Bytes); !ack.Accepted() {
		t.Error("a signed answer was refused")
	}
	if ack := g.Publish(c, c.ResultTopic(), 1, m.Bytes); ack.Accepted() {
		t.Error("a replayed answer was accepted")
	}
	if ack := g.Publish(g.Connect(g.Device("monitor"), harness.MQTT5), c.CommandTopic(), 1, []byte("1")); ack.Accepted() {
		t.Error("a client could publish a command")
	}
}

// TestCommandIsNoData: a command's envelope, sent back to the gateway as a message of the device, is refused, although
// the signature is the device's.
func TestCommandIsNoData(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.CommandTopic(), 1))
	s := g.Ask("POST", "/v1/devices/sensor_001/commands", `{"temperature":99}`)
	if s.Status != 202 {
		t.Fatalf("%d %s", s.Status, s.Text)
	}
	got, err := c.Inbox().WaitCount(g.Limit(), c.CommandTopic(), 1)
	g.Must(err)
	for _, topic := range []string{c.DataTopic(), c.ResultTopic()} {
		mark := g.Broker.Log().Mark()
		if ack := g.Publish(c, topic, 1, got[0].Payload); ack.Code != device.NotAuthorized {
			t.Errorf("a command as a message on %s: %v", topic, ack)
		}
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused", "topic="+topic+" ", "reason=malformed", "message_id="+s.ID))
		g.Must(err)
	}
	// And the other way round: what the device has signed is no command, even with the right payload.
	forged := c.Sign(fmt.Sprintf(`{"command":"open","expires":%d}`, time.Now().Add(time.Hour).Unix()))
	v := c.NewCommandVerifier()
	if _, err := v.Verify(forged.Bytes, time.Now()); library.ReasonOf(err) != library.Malformed {
		t.Errorf("a message of the device's as a command: %v", err)
	}
	if _, err := v.Verify(got[0].Payload, time.Now()); err != nil {
		t.Errorf("the command itself: %v", err)
	}
	if _, err := v.Verify(got[0].Payload, time.Now()); library.ReasonOf(err) != library.Repeated {
		t.Errorf("the command a second time: %v", err)
	}
	if _, err := g.Device("sensor_001").NewCommandVerifier().Verify(got[0].Payload, time.Now().Add(time.Hour)); library.ReasonOf(err) != library.Expired {
		t.Errorf("the command an hour later: %v", err)
	}
	tampered := bytes.Replace(got[0].Payload, []byte("99"), []byte("98"), 1)
	if _, err := v.Verify(tampered, time.Now()); library.ReasonOf(err) != library.Forged {
		t.Errorf("the command with another body: %v", err)
	}
}

// TestCommandsWait: a device that is away gets its commands when it comes back, from its session or without one, but
// none whose time is up; also when the broker was killed meanwhile.
func TestCommandsWait(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"session", "clean", "v5"}, HTTP: true, Persistence: true})
	connect := func(id string) *harness.Client {
		d := g.Device(id)
		c := &harness.Client{Device: d, Username: id, Protocol: harness.MQTT311}
		var err error
		if id == "v5" {
			c.Protocol = harness.MQTT5
			c.Client, err = d.ConnectV5(g.Limit(), func(o *paho.Connect) {
				o.ClientID, o.CleanStart = id, false
				o.Properties = &paho.ConnectProperties{SessionExpiryInterval: new(uint32(3600))}
			})
		} else {
			c.Client, err = d.ConnectV3(g.Limit(), func(o *mqtt.ClientOptions) { o.SetClientID(id).SetCleanSession(id == "clean") })
		}
		g.Must(err)
		return c
	}
	for _, id := range []string{"session", "v5"} {
		c := connect(id)
		g.Must(c.Subscribe(g.Limit(), c.CommandTopic(), 1))
		g.Must(c.Close())
	}
	late := map[string]string{}
	good := map[string]string{}
	for _, id := range []string{"session", "clean", "v5"} {
		short := g.Ask("POST", "/v1/devices/"+id+"/commands?ttl=2s", `"short"`)
		long := g.Ask("POST", "/v1/devices/"+id+"/commands?ttl=10m", `"long"`)
		if short.Status != 202 || long.Status != 202 {
			t.Fatalf("%s %s", short.Text, long.Text)
		}
		late[id], good[id] = short.ID, long.ID
	}
	for _, id := range late {
		g.CommandState(id, "expired")
	}
	// time(2), by which the broker counts, changes its second up to one tick of the kernel's clock (10 ms) later than the clock
	// that the gateway reads.
	time.Sleep(50 * time.Millisecond)
	check := func() {
		t.Helper()
		for _, id := range []string{"session", "clean", "v5"} {
			c := connect(id)
			obeying := obey(g, c, func(c library.Command) (string, string) { return "succeeded", string(c.Body) })
			if s := g.CommandState(good[id], "succeeded"); string(s.Result) != `"long"` {
				t.Errorf("%s: %s", id, s.Text)
			}
			for _, r := range c.Inbox().On(c.CommandTopic()) {
				if strings.Contains(string(r.Payload), "short") {
					t.Errorf("%s got an expired command", id)
				}
			}
			obeying.end()
			g.Must(c.Close())
		}
	}
	check()
	// Again over a SIGKILL, after which only the plugin knows of the commands.
	for id := range good {
		good[id] = g.Ask("POST", "/v1/devices/"+id+"/commands?ttl=10m", `"long"`).ID
	}
	g.Must(g.Broker.Process().Kill())
	g.Must(g.Broker.Start())
	check()
}

// TestCommandErrors asks for each error of the HTTP interface.
func TestCommandErrors(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "off"}, HTTP: true})
	g.SetDisabled("off", true)
	for s := g.Ask("POST", "/v1/devices/off/commands", "1"); s.Status == 202; s = g.Ask("POST", "/v1/devices/off/commands", "1") {
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
		s := g.Ask(c.method, c.path, c.body, c.header...)
		if s.Status != c.status || s.Reason != c.reason || s.Header.Get("Content-Type") != "application/problem+json" || s.Detail == "" {
			t.Errorf("%s %s %.20s %.40q: %d %q, want %d %s", c.method, c.path, c.body, c.header, s.Status, s.Text, c.status, c.reason)
		}
		if strings.Contains(string(s.Text), broker.HTTPToken) {
			t.Errorf("the token is in %s", s.Text)
		}
	}
	first := g.Ask("POST", path, `{"a":1}`, "Idempotency-Key", "k")
	again := g.Ask("POST", path, `{"a":1}`, "Idempotency-Key", "k")
	if first.Status != 202 || again.Status != 202 || again.ID != first.ID || first.Repeated || !again.Repeated {
		t.Errorf("one key twice: %s and %s", first.Text, again.Text)
	}
	if s := g.Ask("POST", path, `{"a":2}`, "Idempotency-Key", "k"); s.Status != 422 || s.Reason != "idempotency_key_reused" {
		t.Errorf("a key for another body: %d %s", s.Status, s.Text)
	}
	for n := 1; ; n++ {
		s := g.Ask("POST", path, "1")
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
			g.Publish(publisher, publisher.DataTopic(), 1, m.Bytes)
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	idle, idle99 := measure(2 * time.Second)
	for _, c := range clients {
		obey(g, c, func(library.Command) (string, string) { return "succeeded", "" })
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
				a, err := harness.Ask(context.Background(), pool, "http://"+g.Broker.HTTPAddr(), "POST", "/v1/devices/"+clients[n%devices].ID+"/commands", `{"n":1}`)
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
	deadline := time.Now().Add(harness.Patience)
	done := fmt.Sprintf("bouncer_commands{state=\"succeeded\"} %d\n", taken.Load())
	for ; !strings.Contains(string(g.Ask("GET", "/metrics", "").Text), done); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d commands were taken; not all were answered", taken.Load())
		}
	}
	t.Logf("%.0f commands a second, all answered; a publish took %v (p99 %v) before and %v (p99 %v) meanwhile",
		float64(taken.Load())/seconds, idle, idle99, busy, busy99)
	// Load, devices and broker share the machine, which is what most of the difference is.
	if busy > 25*time.Millisecond {
		t.Errorf("with the commands a publish took %v in the median", busy)
	}
}
