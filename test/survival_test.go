package test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"golang.org/x/time/rate"

	"mosquitto-bouncer/test/backend"
	"mosquitto-bouncer/test/broker"
	"mosquitto-bouncer/test/device"
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

// On 2.0 the kernel gives the broker's signals to threads of Go's, whose goroutines have small stacks.
func TestSignals(t *testing.T) {
	const signals = 4000
	ids := names(10)
	g := newGate(t, broker.Options{Devices: ids, Quiet: true, Conf: "max_queued_messages 100000"})
	f := g.fleet(ids)
	load := device.Load{Devices: f.devices, Window: 20, Rate: 2000, Payload: []byte(payload)}
	report := g.during(load, func(ctx context.Context) error {
		return storm(ctx, g.broker.Process(), signals, 1000, syscall.SIGUSR2, syscall.SIGHUP)
	})
	if report.Accepted < 1000 {
		g.Errorf("%d messages accepted while %d signals came: that is no load", report.Accepted, signals)
	}
	g.settled(f, report, false)
	if g.broker.Log().Count(0, broker.Contains("Reloading config")) == 0 {
		g.Error("SIGHUP had no effect")
	}
	t.Logf("%d signals, %d messages, p99 of PUBACK %v", signals, report.Accepted, report.Percentile(99))
}

// storm sends signals in turn, so many a second, and returns when they have been delivered. Each waits for the last of
// its kind to be delivered: of two that are pending the kernel would drop one.
func storm(ctx context.Context, p *broker.Process, n int, perSecond float64, signals ...syscall.Signal) error {
	limit := rate.NewLimiter(rate.Limit(perSecond), 1)
	for i := range n {
		sig := signals[i%len(signals)]
		err := limit.Wait(ctx)
		if err == nil {
			err = delivered(ctx, p, sig)
		}
		if err == nil {
			err = p.Signal(sig)
		}
		if err != nil {
			return fmt.Errorf("after %d signals: %w", i, err)
		}
	}
	for _, sig := range signals {
		if err := delivered(ctx, p, sig); err != nil {
			return err
		}
	}
	return nil
}

// delivered waits until a signal is not pending for a process.
func delivered(ctx context.Context, p *broker.Process, sig syscall.Signal) error {
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(status), "\nShdPnd:\t")
		hex, _, _ := strings.Cut(rest, "\n")
		pending, err := strconv.ParseUint(hex, 16, 64)
		if err != nil {
			return err
		}
		if pending&(1<<(sig-1)) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%v is not delivered: %w", sig, ctx.Err())
		}
	}
}

// probe is a plugin of its own that says how the broker's signal handlers are installed. It waits for the second tick:
// by then every other plugin has seen one.
const probe = `
#include <signal.h>
#include <stddef.h>
#include <mosquitto.h>
#include <mosquitto_broker.h>
#include <mosquitto_plugin.h>

static int on_tick(int event, void *data, void *userdata)
{
	static int ticks;
	const int signals[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

	(void)event; (void)data; (void)userdata;
	if(++ticks != 2) return MOSQ_ERR_SUCCESS;
	for(size_t i = 0; i < sizeof(signals)/sizeof(signals[0]); i++){
		struct sigaction a;
		sigaction(signals[i], NULL, &a);
		mosquitto_log_printf(MOSQ_LOG_NOTICE, "probe: signal=%d handled=%d onstack=%d", signals[i],
				a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN, (a.sa_flags & SA_ONSTACK) != 0);
	}
	mosquitto_log_printf(MOSQ_LOG_NOTICE, "probe: done");
	return MOSQ_ERR_SUCCESS;
}

int mosquitto_plugin_version(int n, const int *versions)
{
	(void)n; (void)versions;
	return 5;
}

int mosquitto_plugin_init(mosquitto_plugin_id_t *id, void **userdata, struct mosquitto_opt *options, int n)
{
	(void)userdata; (void)options; (void)n;
	return mosquitto_callback_register(id, MOSQ_EVT_TICK, on_tick, NULL, NULL);
}

int mosquitto_plugin_cleanup(void *userdata, struct mosquitto_opt *options, int n)
{
	(void)userdata; (void)options; (void)n;
	return MOSQ_ERR_SUCCESS;
}
`

func TestSignalHandlersUseTheirOwnStack(t *testing.T) {
	library := compile(t, "probe_tick", probe)
	b, err := broker.New(broker.Options{ListenerConf: "plugin {dir}/probe.so"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := b.WriteFile("probe.so", library); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := b.WaitLog(ctx, 0, broker.Contains("probe: done")); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
		if b.Log().Count(0, broker.Contains(fmt.Sprintf("probe: signal=%d handled=1 onstack=1", sig))) != 1 {
			t.Errorf("the broker's handler of %v is not installed with SA_ONSTACK:\n\t%s", sig,
				strings.Join(b.Log().Find(0, broker.Contains("probe: ")), "\n\t"))
		}
	}
	if err := b.Stop(); err != nil {
		t.Error(err)
	}
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

// stopped sends a signal and checks that the broker ends by itself, successfully and in time, and that the log says
// how many accepted messages were left behind, when that is more than none.
func (g *gate) stopped(sig syscall.Signal, within time.Duration, left int) {
	g.Helper()
	p := g.broker.Process()
	mark := g.broker.Log().Mark()
	begin := time.Now()
	g.no(p.Signal(sig))
	select {
	case <-p.Done():
	case <-g.limit().Done():
		g.Fatalf("the broker still runs %v after %v", patience, sig)
	}
	if took := time.Since(begin); took > within {
		g.Errorf("%v: the broker stopped after %v, want at most %v", sig, took, within)
	}
	exit, ok := errors.AsType[*broker.ExitError](p.Ended())
	if !ok || exit.Code != 0 {
		g.Errorf("%v: %v", sig, p.Ended())
	}
	lost := g.broker.Log().Find(mark, broker.Contains("bouncer: the backend has not taken every accepted message yet"))
	switch {
	case left == 0 && len(lost) > 0:
		g.Errorf("%v: all was delivered, but the log says: %s", sig, lost)
	case left > 0 && (len(lost) != 1 || !strings.Contains(lost[0], fmt.Sprintf("%d messages were not delivered", left))):
		g.Errorf("%v: %d messages were left behind, the log says: %q", sig, left, lost)
	}
	if g.broker.Log().Count(mark, broker.Contains("bouncer: stopped")) != 1 {
		g.Errorf("%v: the plugin did not say that it has stopped", sig)
	}
}

// settledAt checks the plugin's last account: all that was ever accepted is with the backend.
func (g *gate) settledAt(n int) {
	g.Helper()
	stopped := g.broker.Log().Find(0, broker.Contains("bouncer: stopped "))
	if want := fmt.Sprintf("accepted=%d delivered=%d dead=0 pending=0", n, n); len(stopped) == 0 || !strings.HasSuffix(stopped[len(stopped)-1], want) {
		g.Errorf("the plugin stopped with %q, want %s", stopped, want)
	}
}

func TestStops(t *testing.T) {
	const idle, busy = 2 * time.Second, 5 * time.Second // the most that a stop may take
	ids := names(5)
	send := func(g *gate, n int) {
		g.Helper()
		var clients []*client
		for _, id := range ids {
			clients = append(clients, g.connect(g.device(id), mqtt5))
		}
		for i := range n {
			c := clients[i%len(clients)]
			if ack := g.publish(c, c.DataTopic(), 1, c.Sign(payload).Bytes); !ack.Accepted() {
				g.Fatalf("message %d: %v", i+1, ack)
			}
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Run("idle", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				send(g, 1) // right after it says that it runs, 2.0 forgets a SIGTERM
				if _, err := g.backend.Wait(g.limit(), 1); err != nil {
					g.Fatal(err)
				}
				g.stopped(sig, idle, 0)
			})
			t.Run("with connections", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				f := g.fleet(ids)
				d := f.devices[0]
				g.accept(g.connect(d, mqtt5), 1, d.Sign(payload))
				g.stopped(sig, idle, 0)
			})
			t.Run("backend refuses connections", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				f := g.fleet(ids[:1])
				d := f.devices[0]
				g.accept(g.connect(d, mqtt5), 1, d.Sign(payload))
				_, err := f.inboxes[0].WaitCount(g.limit(), d.ResponseTopic(), 1) // until then it may yet fail
				g.no(err)
				g.no(g.backend.Down())
				send(g, 100)
				g.stopped(sig, busy, 100)
				g.no(g.backend.Up())
				g.no(g.broker.Start())
				_, err = g.backend.Wait(g.limit(), 101)
				g.no(err)
				g.no(g.broker.Stop())
				g.settledAt(101)
			})
			t.Run("backend hangs", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
				send(g, 100)
				if _, err := g.backend.Wait(g.limit(), len(ids)); err != nil {
					g.Fatal(err)
				}
				g.stopped(sig, busy, 100)
			})
			t.Run("backend is slow", func(t *testing.T) {
				t.Parallel()
				g := newGate(t, broker.Options{Devices: ids})
				g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Delay: 50 * time.Millisecond} })
				send(g, 50)
				g.stopped(sig, busy, 0)
				if n := g.backend.Count(); n != 50 {
					g.Errorf("the backend got %d messages of 50", n)
				}
			})
		})
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

// Responses that nobody takes must not stay in the broker's memory: those for devices that do not subscribe, those for
// devices that are away and had subscribed with QoS 0, and those that no longer fit in the queue of a device that is
// away.
func TestUnwantedResponsesCostNoMemory(t *testing.T) {
	const (
		responses = 30_000
		warmUp    = 10_000
		queue     = 100
		growth    = 10 << 20 // bytes; kept responses would be 30 MiB at least
	)
	ids := names(12)
	g := newGate(t, broker.Options{Devices: append(ids, "witness"), Quiet: true,
		Conf: fmt.Sprintf("max_queued_messages %d\nsys_interval 1", queue)})
	body := []byte(`"` + strings.Repeat("x", 1<<10) + `"`)
	g.backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Body: body} })
	var devices []*device.Device
	for i, id := range ids {
		d := g.device(id)
		devices = append(devices, d)
		if i%3 > 0 {
			g.leave(d, byte(i%3-1))
		}
	}
	witness := g.connect(g.device("witness"), mqtt5)
	g.no(witness.Subscribe(g.limit(), witness.ResponseTopic(), 1))
	observer := g.connect(g.device("observer"), mqtt5)
	g.no(observer.Subscribe(g.limit(), "$SYS/broker/#", 0))

	// send has n messages answered, and returns when the broker has had every response.
	sent := 0
	send := func(n int) {
		g.Helper()
		target := sent + n
		load := device.Load{Devices: devices, Window: 20, Rate: 4000, Payload: []byte(payload)}
		report := g.during(load, func(ctx context.Context) error {
			_, err := g.backend.Wait(ctx, target)
			return err
		})
		sent += report.Accepted
		if report.Refused > 0 {
			g.Fatalf("%d messages were refused", report.Refused)
		}
		if _, err := g.backend.Wait(g.limit(), sent); err != nil {
			g.Fatal(err)
		}
		// The way back is one queue: what came before the witness's response has gone before it.
		before := len(witness.Inbox().All())
		g.accept(witness, 1, witness.Sign(payload))
		sent++
		if _, err := witness.Inbox().WaitCount(g.limit(), witness.ResponseTopic(), before+1); err != nil {
			g.Fatal(err)
		}
	}
	send(warmUp)
	before, _, err := g.broker.Process().Memory()
	g.no(err)
	send(responses)
	after, _, err := g.broker.Process().Memory()
	g.no(err)

	if after-before > growth {
		g.Errorf("the broker grew from %d to %d KiB over %d responses that nobody took, want %d KiB more at most",
			before>>10, after>>10, responses, growth>>10)
	}
	stored := g.stored(observer)
	if most := len(ids)*queue + 200; stored > most {
		g.Errorf("the broker holds %d messages, want %d at most", stored, most)
	}
	if said := g.broker.Log().Find(0, broker.Contains("bouncer: ", "response")); len(said) > 0 {
		g.Errorf("not every response was published:\n\t%s", strings.Join(said, "\n\t"))
	}
	t.Logf("%d responses: resident %d KiB before, %d KiB after, %d messages stored", responses, before>>10, after>>10, stored)
}

// leave makes a session that lasts, subscribed to the device's responses, and disconnects it.
func (g *gate) leave(d *device.Device, qos byte) {
	g.Helper()
	hour := uint32(3600)
	c, err := d.ConnectV5(g.limit(), func(c *paho.Connect) {
		c.CleanStart = false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: &hour}
	})
	g.no(err)
	g.no(c.Subscribe(g.limit(), d.ResponseTopic(), qos))
	g.no(c.Close())
}

// stored is the number of messages in the broker's memory, by its own account.
func (g *gate) stored(observer *client) int {
	g.Helper()
	// The broker publishes all its figures together: after two of one, all are from later than now.
	begin, uptimes := time.Now(), 0
	_, err := observer.Inbox().Wait(g.limit(), func(r device.Received) bool {
		if r.Topic == "$SYS/broker/uptime" && r.At.After(begin) {
			uptimes++
		}
		return uptimes == 2
	})
	g.no(err)
	counts := observer.Inbox().On("$SYS/broker/store/messages/count")
	if len(counts) == 0 {
		g.Fatal("the broker does not tell how many messages it stores")
	}
	n, err := strconv.Atoi(string(counts[len(counts)-1].Payload))
	g.no(err)
	return n
}
