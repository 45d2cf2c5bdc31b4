package test

import (
	"database/sql"
	"strconv"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

func TestPanics(t *testing.T) {
	const each = 200
	ids := []string{"sensor_001", "sensor_002", "sensor_003"} // a line for each refusal is more than one device gets
	g := harness.New(t, broker.Options{Devices: ids})
	g.Watch()
	var clients []*harness.Client
	for _, id := range ids {
		clients = append(clients, g.Connect(g.Device(id), harness.MQTT5))
	}
	for i := range each {
		c, qos := clients[i%len(clients)], byte(i/len(clients)%3)
		bad := c.Sign(`"inject_fault"`)
		g.Refuse(c, c.DataTopic(), qos, bad, "internal") // if not: is the plugin built with the tag faultinject?
		g.Accept(c, qos, c.Sign(strconv.Itoa(i)))
	}
	g.NothingElse(ids[0])
	for _, want := range []string{
		`bouncer: internal error, caught; please report it where=message panic="injected fault"`,
		`bouncer:   mosquitto-bouncer/plugin/gate.injectFault(`,
		`bouncer:   mosquitto-bouncer/plugin/gate.(*Gate).Message(`,
	} {
		// Once for the first, and then not so often that a device could fill the log.
		if n := g.Broker.Log().Count(0, broker.Contains(want)); n == 0 || n > each/10 {
			g.Errorf("%d lines with %q in the log for %d panics", n, want, each)
		}
	}
}

// While the backend hangs, the broker's thread must not.
func TestBackendHangs(t *testing.T) {
	ids := harness.DeviceIDs(10)
	g := harness.New(t, broker.Options{Devices: ids, Quiet: true, Settings: map[string]any{"backend.timeout": "1s"}})
	f := g.Fleet(ids)
	g.Backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Hang: true} })
	load := device.Load{Devices: f.Devices, Window: 20, Rate: 500, Duration: 3 * time.Second, Payload: []byte(harness.Payload)}
	report, err := load.Run(g.Limit())
	g.Must(err)
	if n := g.Backend.Count(); n < len(ids) {
		g.Errorf("%d requests hung while messages came, want one of each of the %d devices at least", n, len(ids))
	}
	prompt(g, report)
	g.Backend.Script(backend.OK)
	g.Settled(f, report, true)
}

// prompt checks that the publishes of a load were acknowledged without delay. A broker's thread that waited would wait
// for the backend's time-out, here a second, or for the database, a quarter of one at least; what is allowed beyond a
// millisecond is for a busy machine.
func prompt(g *harness.Gateway, report *device.Report) {
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
	ids := harness.DeviceIDs(4)
	g := harness.New(t, broker.Options{Devices: ids, Quiet: true})
	var devices []*device.Device
	for _, id := range ids {
		devices = append(devices, g.Device(id))
	}
	late := g.Device("late")
	ctx := g.Limit()
	db, err := sql.Open("sqlite3", "file:"+g.Broker.Path("devices.db")+"?_busy_timeout=5000")
	g.Must(err)
	defer db.Close()
	lock, err := db.Conn(ctx)
	g.Must(err)
	defer lock.Close()
	mark := g.Broker.Log().Mark()
	_, err = lock.ExecContext(ctx, "BEGIN EXCLUSIVE")
	g.Must(err)
	_, err = lock.ExecContext(ctx, "INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, ?)",
		late.ID, string(late.Secret), time.Now().Unix())
	g.Must(err)

	load := device.Load{Devices: devices, Window: 20, Rate: 500, Duration: 3 * time.Second, Payload: []byte(harness.Payload)}
	report, err := load.Run(g.Limit())
	g.Must(err)
	prompt(g, report)
	if m := late.Sign(harness.Payload); g.Publish(g.Connect(late, harness.MQTT5), late.DataTopic(), 1, m.Bytes).Accepted() {
		g.Error("a device was accepted before its registration was committed")
	}
	if said := g.Broker.Log().Find(mark, broker.Contains("bouncer: ", "device database")); len(said) > 1 {
		g.Errorf("the log says of the locked database %d times:\n\t%s", len(said), strings.Join(said, "\n\t"))
	}

	_, err = lock.ExecContext(ctx, "COMMIT")
	g.Must(err)
	begin := time.Now()
	_, err = g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: devices changed added=1 "))
	g.Must(err)
	if took := time.Since(begin); took > time.Second {
		g.Errorf("a new device took effect %v after the lock, want within a second", took)
	}
	g.Accept(g.Connect(late, harness.MQTT5), 1, late.Sign(harness.Payload))
	if _, err := g.Backend.Wait(g.Limit(), report.Accepted+1); err != nil {
		g.Error(err)
	}
}
