package test

import (
	"encoding/binary"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestStateDirectory has a state_dir that cannot be used refuse the start, and say why.
func TestStateDirectory(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	other, err := broker.New(broker.Options{Settings: map[string]any{"state_dir": g.Broker.Path("state")}})
	g.Must(err)
	defer other.Close()
	if err := other.Start(); err == nil || !strings.Contains(err.Error(), "another broker runs with the same state_dir") {
		t.Errorf("two brokers with one state_dir: %v", err)
	}
	g.Must(other.SetSettings(map[string]any{"state_dir": filepath.Join(other.Dir, "none")}))
	if err := other.Start(); err == nil || !strings.Contains(err.Error(), "create the directory, and let it belong to the broker's user") {
		t.Errorf("no state_dir: %v", err)
	}
}

// outage is how long TestOutage publishes while the backend is down: $OUTAGE, or 4 s.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("OUTAGE")
	if text == "" {
		return 4 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("OUTAGE: %v", err)
	}
	return d
}

// TestOutage publishes as fast as it goes while the backend is down. Memory grows by what the replay memory and the
// index take; when the backend is back, everything reaches it in order, while new messages come.
func TestOutage(t *testing.T) {
	ids := harness.DeviceIDs(20)
	g := harness.New(t, broker.Options{Devices: ids, Quiet: true, Settings: map[string]any{
		"response.topic": "", "journal.max_bytes": 8 << 30, "publish.tolerance": "1h",
	}})
	var devices []*device.Device
	for _, id := range ids {
		devices = append(devices, g.Device(id))
	}
	load := device.Load{Devices: devices, Window: 20, Burst: 10, Payload: []byte(harness.Payload), Duration: time.Second}
	warm, err := load.Run(t.Context())
	g.Must(err)
	g.Eventually("the first messages", func() bool { return g.Backend.Count() == warm.Accepted })
	g.Must(g.Backend.Down())
	before, _, err := g.Broker.Process().Memory()
	g.Must(err)
	load.Duration = outage(t)
	during, err := load.Run(t.Context())
	g.Must(err)
	after, _, err := g.Broker.Process().Memory()
	g.Must(err)
	grown := float64(after-before) / (1 << 20)
	t.Logf("%d messages in %v while the backend was down (%.0f a second); resident memory grew by %.1f MiB",
		during.Accepted, during.Elapsed.Round(time.Millisecond), during.PerSecond(), grown)
	if during.Accepted != during.Sent || warm.Accepted != warm.Sent {
		t.Errorf("%d of %d accepted", during.Accepted, during.Sent)
	}
	if grown > 50 {
		t.Errorf("resident memory grew by %.1f MiB, want less than 50", grown)
	}

	g.Backend.Script(backend.Status(http.StatusNoContent))
	streams := map[string][]uuid.UUID{} // by device, the ids that came, each stream's numbers in their last 8 bytes
	got := 0
	enter := func(r *backend.Request) {
		id := uuid.MustParse(r.MessageID())
		all := streams[r.Device]
		if n := len(all); n > 0 && string(all[n-1][:8]) == string(id[:8]) {
			last, now := binary.BigEndian.Uint64(all[n-1][8:]), binary.BigEndian.Uint64(id[8:])
			if now == last {
				return // again: on a busy machine an answer may come after the time-out
			}
			if now != last+1 {
				t.Errorf("%s: %d messages after the last", r.Device, int64(now-last))
			}
		} else {
			for _, former := range all {
				if string(former[:8]) == string(id[:8]) {
					t.Errorf("%s: a message of a former stream comes after a later one's", r.Device)
				}
			}
			streams[r.Device] = append(all, id)
		}
		streams[r.Device][len(streams[r.Device])-1] = id
		got++
	}
	want := warm.Accepted + during.Accepted
	stop := g.TakeRequests(enter)
	begin := time.Now()
	g.Must(g.Backend.Up())
	load.Duration, load.Rate = 3*time.Second, 500
	flowing, err := load.Run(t.Context())
	g.Must(err)
	want += flowing.Accepted
	g.WaitDrained(3 * time.Minute)
	took := time.Since(begin)
	stop()
	if got != want {
		t.Errorf("the backend got %d messages of %d", got, want)
	}
	t.Logf("drained in %v (%.0f a second), while %d new messages came", took.Round(time.Millisecond), float64(want)/took.Seconds(), flowing.Accepted)
	g.Must(g.Broker.Stop())
	g.ExpectAllDelivered(want)
}

// TestDiskFull fills the file system of state_dir. Publishes are refused as overloaded, everything else is served, and
// when there is room again they are accepted again. It mounts a tmpfs, in a mount namespace of its own.
func TestDiskFull(t *testing.T) {
	const private = "BOUNCER_TEST_PRIVATE_MOUNTS"
	if os.Getenv(private) == "" {
		child := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
		child.Env = append(os.Environ(), private+"=1")
		out, err := child.CombinedOutput()
		if os.Geteuid() != 0 || strings.Contains(string(out), "unshare failed") || strings.Contains(string(out), "cannot mount") {
			t.Skipf("only root with the right to mount can mount a file system to fill: %s", out)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: TestDiskFull") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	g := &harness.Gateway{T: t, Backend: backend.Start(t)}
	b, err := broker.New(broker.Options{
		Devices: []string{"sensor_001"}, BackendURL: g.Backend.URL(), Conf: "allow_anonymous true", Listeners: harness.WithoutIdentity, Quiet: true,
	})
	g.Must(err)
	g.Broker = b
	defer func() { g.Must(b.Close()) }()
	if err := syscall.Mount("tmpfs", b.Path("state"), "tmpfs", 0, "size=8m,mode=777"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	defer func() { g.Must(syscall.Unmount(b.Path("state"), syscall.MNT_DETACH)) }()
	g.Must(b.Start())
	g.Watch()
	d := g.Device("sensor_001")
	c := g.Connect(d, harness.MQTT5)
	g.Accept(c, 1, d.Sign("1"))
	ballast := b.Path("state/ballast") // in addition to what the journal reserves
	g.Must(os.WriteFile(ballast, make([]byte, 1<<20), 0o600))

	large := `"` + strings.Repeat("x", 60000) + `"`
	var refused device.Message
	accepted := 0
	for refused.Bytes == nil {
		m := d.Sign(large)
		if ack := g.Publish(c, d.DataTopic(), 1, m.Bytes); ack.Code == device.NotAuthorized {
			refused = m
		} else if accepted++; accepted > 200 {
			t.Fatal("the disk does not fill up")
		} else {
			g.Expect(d.DataTopic(), m)
		}
	}
	_, err = b.WaitLog(g.Limit(), 0, broker.Contains("bouncer: refused ", "reason=overloaded", "no space left on device"))
	g.Must(err)
	t.Logf("%d messages until the disk was full", accepted)
	// Others are served, and what was accepted is delivered.
	for range 3 {
		operator := g.ConnectAs(d.Anonymous().Via(b.Address(1)), harness.MQTT5, "operator")
		if ack := g.Publish(operator, "news", 1, []byte("hello")); !ack.Accepted() {
			t.Error(ack)
		}
		g.Refuse(c, d.DataTopic(), 1, d.Sign(large), "overloaded")
	}
	g.Delivered("news", []byte("hello"))
	for _, m := range g.AllAccepted() {
		g.Posted(m.Message)
	}

	g.Must(os.Remove(ballast))
	for deadline := time.Now().Add(harness.Patience); !g.Publish(c, d.DataTopic(), 1, refused.Bytes).Accepted(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("there is room, and publishes are still refused")
		}
	}
	g.Expect(d.DataTopic(), refused)
	g.Posted(refused)
	g.Accept(c, 1, d.Sign("2"))
	_, err = b.WaitLog(g.Limit(), 0, broker.Contains("bouncer: the journal stores messages again"))
	g.Must(err)
	g.Must(b.Stop())
	g.ExpectAllDelivered(accepted + 3)
}

// TestStateDirAway: what could not be kept is not acknowledged, /healthz says so, and when the same files are back it
// continues by itself.
func TestStateDirAway(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Accept(c, 1, c.Sign("1"))
	state := g.Broker.Path("state")
	began := time.Now()
	g.Must(os.Rename(state, state+".away"))
	g.HealthSays(503, "was removed or renamed")
	if took := time.Since(began); took > 3*time.Second { // it takes less than one where nothing else is busy
		t.Errorf("noticed after %v", took)
	}
	g.Refuse(c, c.DataTopic(), 1, c.Sign("2"), "overloaded")
	g.Must(os.Rename(state+".away", state))
	g.HealthSays(200, "")
	g.Accept(c, 1, c.Sign("3"))
}
