package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	bouncer "mosquitto-bouncer/plugin/fleet"
	"mosquitto-bouncer/plugin/fleetstate"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestMessages: what a device publishes is in the stream, over TLS, with subject, headers and payload, in order and once.
func TestMessages(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1, tls: true}).up()
	cert, key, err := c.ca.IssueDevice("gw-a", time.Now(), time.Hour)
	must(t, err)
	o := c.options("gw-a", 2, map[string]any{"fleet.ca_file": "nats-ca.crt", "fleet.cert_file": "nats.crt", "fleet.key_file": "nats.key"})
	o.Files = map[string]string{"nats-ca.crt": string(c.ca.CertPEM()), "nats.crt": string(cert), "nats.key": string(key)}
	g := harness.New(t, o)
	_, js := c.client()

	d := g.Connect(g.Device("gw-a.1"), harness.MQTT5)
	for n := range 20 {
		m := d.Sign(fmt.Sprintf(`{"n": %d.0}`, n))
		if ack := g.Publish(d, d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatalf("message %d: %v", n, ack)
		}
		eventually(t, "stored", func() bool { return pending(t, g) == 0 })
		messages := all(t, js)
		if len(messages) != n+1 {
			t.Fatalf("%d messages after %d", len(messages), n+1)
		}
		got := messages[n]
		if string(got.Data()) != fmt.Sprintf(`{"n": %d.0}`, n) {
			t.Errorf("payload %q", got.Data())
		}
		want := map[string]string{
			"Nats-Msg-Id": "gw-a.1:" + strings.ToLower(m.MessageID), "ce-specversion": "1.0", "ce-type": "mosquitto-bouncer.message.v1",
			"ce-id": strings.ToLower(m.MessageID), "ce-source": "/devices/gw-a.1", "ce-subject": "device/gw-a.1/data",
			"ce-time": time.Unix(m.Timestamp, 0).UTC().Format(time.RFC3339), "content-type": "application/json",
		}
		for name, value := range want {
			if is := got.Headers()[name]; len(is) != 1 || is[0] != value {
				t.Errorf("%s is %q, want %q", name, is, value)
			}
		}
		if len(got.Headers()) != len(want) {
			t.Errorf("headers %v", got.Headers())
		}
		if !strings.HasPrefix(got.Subject(), "bouncer.up.") || !strings.HasSuffix(got.Subject(), ".gw-a%2E1") {
			t.Errorf("subject %s", got.Subject())
		}
	}
	for name, want := range map[string]float64{"bouncer_fleet_connected": 1, "bouncer_fleet_ready": 1, "bouncer_fleet_acknowledged_total": 20} {
		if got := g.Metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	g.HealthSays(200, "")
}

// TestAwayAtStart: a gateway starts without NATS, accepts, says why nothing goes out, and sends all of it once NATS is there.
func TestAwayAtStart(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 3})
	begin := time.Now()
	g := c.gateway(t, "gw-a", 5, nil)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("the start took %v", d)
	}
	report := during(t, load(g, 5, "gw-a", 200), func() { time.Sleep(2 * time.Second) })
	if report.Accepted != report.Sent || report.Accepted < 100 {
		t.Errorf("%+v", report)
	}
	g.HealthSays(200, "")
	out, err := exec.Command("../../build/bouncerctl", "queue", "--config", g.Broker.Path("bouncer.toml")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Nothing goes to NATS since ") || !strings.Contains(string(out), "NATS is not connected") {
		t.Errorf("bouncerctl queue: %v\n%s", err, out)
	}
	c.up()
	_, js := c.client()
	drained(t, g)
	if n := exact(t, js, report.Accepted); n != report.Accepted {
		t.Errorf("%d messages are in the stream, %d were accepted", n, report.Accepted)
	}
	eventually(t, "bouncerctl queue says nothing of NATS", func() bool {
		out, err := exec.Command("../../build/bouncerctl", "queue", "--config", g.Broker.Path("bouncer.toml")).CombinedOutput()
		return err == nil && !strings.Contains(string(out), "NATS")
	})
	s, err := js.Stream(context.Background(), stream)
	must(t, err)
	if is := s.CachedInfo().Config; is.Replicas != 3 || is.Retention != jetstream.LimitsPolicy || is.Storage != jetstream.FileStorage ||
		is.Discard != jetstream.DiscardNew || is.Duplicates != 20*time.Minute || is.MaxAge != 0 || is.MaxBytes != 1<<30 {
		t.Errorf("%+v", is)
	}
}

// TestFailures: under a load of 500 a second, a node is killed, the leader is killed, a node hangs, all nodes are gone; nothing
// is lost, out of order or there twice, and no device is refused anything.
func TestFailures(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 3}).up()
	g := c.gateway(t, "gw-a", 20, nil)
	_, js := c.client()
	total := 0
	for _, f := range []struct {
		name string
		do   func()
	}{
		{"follower killed", func() {
			leader := c.leader(js)
			for _, n := range c.nodes {
				if n != leader {
					n.kill()
					storing(t, js, 300)
					c.start(n)
					break
				}
			}
		}},
		{"leader killed", func() {
			n := c.leader(js)
			n.kill()
			storing(t, js, 300)
			c.start(n)
		}},
		{"node hung", func() {
			n := c.leader(js)
			n.signal(syscall.SIGSTOP)
			time.Sleep(5 * time.Second)
			n.signal(syscall.SIGCONT)
		}},
		{"all nodes gone for 20 s", func() {
			for _, n := range c.nodes {
				n.kill()
			}
			time.Sleep(20 * time.Second)
			for _, n := range c.nodes {
				c.start(n)
			}
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			begin := time.Now()
			report := during(t, load(g, 20, "gw-a", 500), func() {
				storing(t, js, 200)
				f.do()
				storing(t, js, 200)
			})
			if report.Accepted != report.Sent || report.Refused != 0 {
				t.Errorf("%d sent, %d accepted, %d refused", report.Sent, report.Accepted, report.Refused)
			}
			total += report.Accepted
			t.Logf("%d messages in %v, PUBACK p99 %v; drained after %v", report.Accepted, report.Elapsed, report.Percentile(99), time.Since(begin))
			drained(t, g)
			if n := exact(t, js, total); n != total {
				t.Errorf("%d messages are in the stream, %d were accepted", n, total)
			}
		})
	}
	must(t, g.Broker.Stop())
	g.ExpectAllDelivered(total)
}

// TestNotTrusted: a server of another CA gets nothing, and one that wants a certificate is not connected without; the gateway says so.
func TestNotTrusted(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1, tls: true}).up()
	other, err := pki.NewCA("another CA", time.Now(), time.Hour)
	must(t, err)
	cert, key, err := c.ca.IssueDevice("gw-a", time.Now(), time.Hour)
	must(t, err)
	for name, test := range map[string]struct {
		settings map[string]any
		want     string
	}{
		"another CA":     {map[string]any{"fleet.ca_file": "other.crt", "fleet.cert_file": "nats.crt", "fleet.key_file": "nats.key"}, "certificate signed by unknown authority"},
		"no certificate": {map[string]any{"fleet.ca_file": "nats-ca.crt"}, "check fleet.cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.options("gw-a", 1, test.settings)
			o.Files = map[string]string{"nats-ca.crt": string(c.ca.CertPEM()), "other.crt": string(other.CertPEM()), "nats.crt": string(cert), "nats.key": string(key)}
			g := harness.New(t, o)
			d := g.Connect(g.Device("gw-a.1"), harness.MQTT5)
			if ack := g.Publish(d, d.DataTopic(), 1, d.Sign(harness.Payload).Bytes); !ack.Accepted() {
				t.Fatal(ack)
			}
			eventually(t, "the reason", func() bool {
				s, err := fleetstate.Load(g.Broker.Path("state"))
				must(t, err)
				return s != nil && strings.Contains(s.Why, test.want)
			})
			if n := g.Metric("bouncer_fleet_connected") + g.Metric("bouncer_fleet_acknowledged_total"); n != 0 || pending(t, g) != 1 {
				t.Errorf("%v, %d pending", n, pending(t, g))
			}
		})
	}
}

// TestStopWhileHung: servers that hang do not hold up the broker's stop, and nothing is lost.
func TestStopWhileHung(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	g := c.gateway(t, "gw-a", 5, nil)
	_, js := c.client()
	c.nodes[0].signal(syscall.SIGSTOP)
	report := during(t, load(g, 5, "gw-a", 300), func() { time.Sleep(time.Second) })
	begin := time.Now()
	must(t, g.Broker.Stop())
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the stop took %v", d)
	}
	c.nodes[0].signal(syscall.SIGCONT)
	must(t, g.Broker.Start())
	drained(t, g)
	if n := exact(t, js, report.Accepted); n != report.Accepted {
		t.Errorf("%d messages are in the stream, %d were accepted", n, report.Accepted)
	}
}

// TestFull: a full stream takes nothing, and loses nothing; messages wait in the journal until it has room.
func TestFull(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	g := c.gateway(t, "gw-a", 5, map[string]any{"fleet.max_bytes": "1MiB"})
	_, js := c.client()
	report := during(t, load(g, 5, "gw-a", 2000), func() { time.Sleep(3 * time.Second) })
	if report.Accepted != report.Sent || report.Accepted < 4000 {
		t.Fatalf("%+v", report)
	}
	if _, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("backend does not take messages", "the stream is full")); err != nil {
		t.Error(err)
	}
	taken := 0
	eventually(t, "all is stored", func() bool {
		if pending(t, g) == 0 {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := js.Stream(ctx, stream)
		must(t, err)
		taken += int(s.CachedInfo().State.Msgs)
		must(t, s.Purge(ctx, jetstream.WithPurgeSequence(s.CachedInfo().State.LastSeq+1)))
		time.Sleep(500 * time.Millisecond)
		return false
	})
	taken += len(all(t, js))
	if taken != report.Accepted {
		t.Errorf("%d of %d messages were in the stream", taken, report.Accepted)
	}
	must(t, g.Broker.Stop())
	g.ExpectAllDelivered(report.Accepted)
}

// TestTooLarge: what no server takes is a dead letter with the reason, and does not hold up the device. It takes a max_bytes that is
// raised while the gateway runs.
func TestTooLarge(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	g := c.gateway(t, "gw-a", 1, nil)
	_, js := c.client()
	text := readable(t, g.Broker.Path("bouncer.toml"))
	raised := strings.Replace(text, "[publish]\n", "[publish]\nmax_bytes = 2097152\n", 1)
	if raised == text {
		t.Fatalf("no [publish] in\n%s", text)
	}
	must(t, g.Broker.WriteFile("bouncer.toml", []byte(raised)))
	must(t, g.Broker.Signal(syscall.SIGHUP))
	if _, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer.toml was reloaded")); err != nil {
		t.Fatal(err)
	}
	d := g.Connect(g.Device("gw-a.1"), harness.MQTT5)
	for _, payload := range []string{`"` + strings.Repeat("x", 1<<20+1<<19) + `"`, harness.Payload} {
		if ack := g.Publish(d, d.DataTopic(), 1, d.Sign(payload).Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	drained(t, g)
	if messages := all(t, js); len(messages) != 1 || string(messages[0].Data()) != harness.Payload {
		t.Errorf("%d messages", len(messages))
	}
	out, err := exec.Command("../../build/bouncerctl", "dead", "list", "--json", "--config", g.Broker.Path("bouncer.toml")).CombinedOutput()
	if err != nil || strings.Count(string(out), `"refused"`) != 1 || !strings.Contains(string(out), "is larger than NATS takes (max_payload 1048576, headers included)") {
		t.Errorf("bouncerctl dead list: %v\n%s", err, out)
	}
}

// TestBrokerKilled: a gateway that is killed under load loses nothing that a device was told is accepted, and has nothing
// stored twice.
func TestBrokerKilled(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	g := c.gateway(t, "gw-a", 10, nil)
	_, js := c.client()
	accepted := 0
	for range 3 {
		l := load(g, 10, "gw-a", 500)
		killed := make(chan error, 1)
		go func() {
			storing(t, js, 400)
			killed <- g.Broker.Kill()
		}()
		report, err := l.Run(context.Background())
		if err == nil {
			t.Error("the load did not notice that the broker was killed")
		}
		must(t, <-killed)
		accepted += report.Accepted
		must(t, g.Broker.Start())
		drained(t, g)
		exact(t, js, accepted)
	}
}

// TestTwoGateways: the messages of two gateways are in one stream, and a message that reached both is there once.
func TestTwoGateways(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	both := func(name string) *harness.Gateway {
		o := c.options(name, 5, nil)
		o.Devices, o.Secrets = append(o.Devices, "roaming"), map[string]string{"roaming": strings.Repeat("ab", 32)}
		return harness.New(t, o)
	}
	a, b := both("gw-a"), both("gw-b")
	_, js := c.client()
	var reports [2]*device.Report
	var loads sync.WaitGroup
	for i, l := range []device.Load{load(a, 5, "gw-a", 250), load(b, 5, "gw-b", 250)} {
		loads.Go(func() { reports[i] = during(t, l, func() { time.Sleep(2 * time.Second) }) })
	}
	loads.Wait()
	m := a.Device("roaming").Sign(harness.Payload)
	for _, g := range []*harness.Gateway{a, b} {
		d := g.Connect(g.Device("roaming"), harness.MQTT5)
		if ack := g.Publish(d, d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
			t.Fatal(ack)
		}
	}
	drained(t, a)
	drained(t, b)
	if n := a.Metric("bouncer_fleet_duplicates_total") + b.Metric("bouncer_fleet_duplicates_total"); n != 1 {
		t.Errorf("%v duplicates", n)
	}
	total := reports[0].Accepted + reports[1].Accepted + 1
	if n := exact(t, js, total); n != total {
		t.Errorf("%d messages are in the stream, %d were accepted", n, total)
	}
}

// mismatches are what a gateway does not start with, by what is in NATS before.
var mismatches = map[string]struct {
	change   func(*jetstream.StreamConfig)
	settings map[string]any
	want     string
}{
	"retention":    {change: func(s *jetstream.StreamConfig) { s.Retention = jetstream.WorkQueuePolicy }, want: "it must be limits, and that cannot be changed: let its consumers read what is left and remove it with nats stream rm bouncer_up"},
	"storage":      {change: func(s *jetstream.StreamConfig) { s.Storage = jetstream.MemoryStorage }, want: "it must keep them in files"},
	"subjects":     {change: func(s *jetstream.StreamConfig) { s.Subjects = []string{"bouncer.>"} }, want: "nats stream edit bouncer_up --subjects='bouncer.up.*.*'"},
	"discard":      {change: func(s *jetstream.StreamConfig) { s.Discard = jetstream.DiscardOld }, want: "nats stream edit bouncer_up --discard=new"},
	"dedup":        {change: func(s *jetstream.StreamConfig) { s.Duplicates = 2 * time.Minute }, want: "nats stream edit bouncer_up --dupe-window=20m0s"},
	"age":          {change: func(s *jetstream.StreamConfig) { s.MaxAge = time.Hour }, want: "nats stream edit bouncer_up --max-age=-1"},
	"a device":     {change: func(s *jetstream.StreamConfig) { s.MaxMsgsPerSubject = 10 }, want: "nats stream edit bouncer_up --max-msgs-per-subject=-1"},
	"size":         {change: func(s *jetstream.StreamConfig) { s.MaxMsgSize = 1000 }, want: "nats stream edit bouncer_up --max-msg-size=-1"},
	"partitions":   {change: func(s *jetstream.StreamConfig) { s.Metadata["bouncer-partitions"] = "8" }, want: `has "8" partitions, fleet.partitions is 16`},
	"no partition": {change: func(s *jetstream.StreamConfig) { s.Metadata = nil }, want: "nats stream edit bouncer_up --metadata=bouncer-partitions=16"},
	"overlap":      {change: func(s *jetstream.StreamConfig) { s.Name, s.Subjects = "other", []string{"bouncer.up.1.>"} }, want: "choose another fleet.prefix"},
	"replicas":     {settings: map[string]any{"fleet.replicas": 3}, want: "has no cluster, so it cannot keep 3 replicas"},
	"more":         {change: func(*jetstream.StreamConfig) {}, settings: map[string]any{"fleet.replicas": 3}, want: "nats stream edit bouncer_up --replicas=3"},
	"payload":      {settings: map[string]any{"publish.max_bytes": "2MiB"}, want: "raise max_payload in nats-server.conf, or lower publish.max_bytes"},
}

// TestMismatches: what is in NATS and not as it must be refuses the start, with a sentence that says what to do.
func TestMismatches(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	_, js := c.client()
	for name, m := range mismatches {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if m.change != nil {
				s := sound()
				m.change(&s)
				_, err := js.CreateStream(ctx, s)
				must(t, err)
				defer func() { must(t, js.DeleteStream(ctx, s.Name)) }()
			}
			o := c.options("gw-a", 1, m.settings)
			b := harness.StartRefused(t, o, nil)
			if b.Log().Count(0, broker.Contains("fleet.servers: ", m.want)) == 0 {
				t.Errorf("the log does not say %q:\n%s", m.want, strings.Join(b.Log().Lines(0), "\n"))
			}
			if m.change == nil {
				if _, err := js.Stream(ctx, stream); !errors.Is(err, jetstream.ErrStreamNotFound) {
					t.Errorf("the stream: %v", err)
				}
			}
		})
	}
}

// sound is a stream that a gateway of a single server takes.
func sound() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: stream, Subjects: []string{"bouncer.up.*.*"}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Replicas: 1,
		Discard: jetstream.DiscardNew, Duplicates: 20 * time.Minute, Metadata: map[string]string{"bouncer-partitions": "16"},
	}
}

// TestMismatchLater: what is found wrong after the start stops the sending, is in /healthz, and ends when it is corrected.
func TestMismatchLater(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1})
	g := c.gateway(t, "gw-a", 2, nil)
	c.up()
	_, js := c.client()
	ctx := g.Limit()
	eventually(t, "the gateway has made the stream", func() bool { _, err := js.Stream(ctx, stream); return err == nil })
	s := sound()
	s.Discard = jetstream.DiscardOld
	s.MaxBytes = 1 << 30
	_, err := js.UpdateStream(ctx, s)
	must(t, err)
	g.HealthSays(503, "--discard=new")
	d := g.Connect(g.Device("gw-a.1"), harness.MQTT5)
	if ack := g.Publish(d, d.DataTopic(), 1, d.Sign(harness.Payload).Bytes); !ack.Accepted() {
		t.Fatal(ack)
	}
	if _, err := g.Broker.WaitLog(ctx, 0, broker.Contains("backend does not take messages", "--discard=new")); err != nil {
		t.Error(err)
	}
	if n := len(all(t, js)); n != 0 {
		t.Errorf("%d messages were sent to a stream that would drop them", n)
	}
	s.Discard = jetstream.DiscardNew
	_, err = js.UpdateStream(ctx, s)
	must(t, err)
	g.HealthSays(200, "")
	drained(t, g)
	if n := len(all(t, js)); n != 1 {
		t.Errorf("%d messages", n)
	}
}

// TestLookUp: what may have been stored long ago is looked up before it is sent again, so that it is stored once although NATS
// has forgotten its id; also where another gateway has stored later messages of the device.
func TestLookUp(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1}).up()
	_, js := c.client()
	f := bouncer.New(bouncer.Options{
		Name: "gw-a", Servers: c.urls(), Prefix: "bouncer", Partitions: 16, Replicas: 1, Dedup: time.Second, MaxBytes: 1 << 30, MaxMessage: 1 << 16,
		Timeout: 5 * time.Second, StateDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	defer f.Close()
	must(t, f.Start())
	publish := func(id string, age time.Duration) {
		t.Helper()
		o, status, err := f.Publish(t.Context(), &bouncer.Record{
			Device: "a.b", ID: id, AcceptedAt: time.Now().Add(-age), Header: map[string][]string{"ce-id": {id}}, Payload: []byte("1"),
		})
		if o != bouncer.Stored {
			t.Fatalf("%v %d %v", o, status, err)
		}
	}
	expect := func(n int, why string) {
		t.Helper()
		if got := len(all(t, js)); got != n {
			t.Fatalf("%d messages, want %d: %s", got, n, why)
		}
	}
	publish("a.b:1", 0)
	publish("a.b:1", 0)
	expect(1, "NATS knows the id")
	time.Sleep(3 * time.Second) // NATS forgets it
	publish("a.b:1", 4*time.Second)
	expect(1, "it was looked up, and is the last of the device")
	publish("a.b:2", 0)
	publish("a.b:3", 0)
	time.Sleep(3 * time.Second)
	publish("a.b:2", 8*time.Second)
	expect(3, "it was looked up, and is followed by others")
	publish("a.b:4", 8*time.Second)
	expect(4, "it was looked up, and was not there")
	publish("a.b:5", 0)
	expect(5, "it was not looked up")
}
