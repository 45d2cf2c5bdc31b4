package test

import (
	"context"
	"encoding/binary"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestStateDirectory has a state_dir that cannot be used refuse the start, and say why.
func TestStateDirectory(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}})
	other, err := broker.New(broker.Options{Settings: map[string]any{"state_dir": g.broker.Path("state")}})
	g.no(err)
	defer other.Close()
	if err := other.Start(); err == nil || !strings.Contains(err.Error(), "another broker runs with the same state_dir") {
		t.Errorf("two brokers with one state_dir: %v", err)
	}
	g.no(other.SetSettings(map[string]any{"state_dir": filepath.Join(other.Dir, "none")}))
	if err := other.Start(); err == nil || !strings.Contains(err.Error(), "create the directory, and let it belong to the broker's user") {
		t.Errorf("no state_dir: %v", err)
	}
}

// reader hands every request to enter, in a goroutine of its own, and forgets it; stop when no more come.
func (g *gate) reader(enter func(*backend.Request)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	g.Cleanup(cancel)
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			requests, err := g.backend.Take(ctx)
			for _, r := range requests {
				enter(r)
			}
			if err != nil {
				return
			}
		}
	})
	return func() {
		cancel()
		reading.Wait()
		for _, r := range g.backend.Requests() {
			enter(r)
		}
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
	ids := names(20)
	g := newGate(t, broker.Options{Devices: ids, Quiet: true, Settings: map[string]any{
		"response.topic": "", "journal.max_bytes": 8 << 30, "publish.tolerance": "1h",
	}})
	var devices []*device.Device
	for _, id := range ids {
		devices = append(devices, g.device(id))
	}
	load := device.Load{Devices: devices, Window: 20, Burst: 10, Payload: []byte(payload), Duration: time.Second}
	warm, err := load.Run(t.Context())
	g.no(err)
	eventually(t, "the first messages", func() bool { return g.backend.Count() == warm.Accepted })
	g.no(g.backend.Down())
	before, _, err := g.broker.Process().Memory()
	g.no(err)
	load.Duration = outage(t)
	during, err := load.Run(t.Context())
	g.no(err)
	after, _, err := g.broker.Process().Memory()
	g.no(err)
	grown := float64(after-before) / (1 << 20)
	t.Logf("%d messages in %v while the backend was down (%.0f a second); resident memory grew by %.1f MiB",
		during.Accepted, during.Elapsed.Round(time.Millisecond), during.PerSecond(), grown)
	if during.Accepted != during.Sent || warm.Accepted != warm.Sent {
		t.Errorf("%d of %d accepted", during.Accepted, during.Sent)
	}
	if grown > 50 {
		t.Errorf("resident memory grew by %.1f MiB, want less than 50", grown)
	}

	g.backend.Script(backend.Status(http.StatusNoContent))
	streams := map[string][]uuid.UUID{} // by device, the ids that came, each stream's numbers in their last 8 bytes
	got := 0
	enter := func(r *backend.Request) {
		id := uuid.MustParse(r.MessageID())
		all := streams[r.Device]
		if n := len(all); n > 0 && string(all[n-1][:8]) == string(id[:8]) {
			last, now := binary.BigEndian.Uint64(all[n-1][8:]), binary.BigEndian.Uint64(id[8:])
			if now == last {
				return // once more: on a busy machine an answer may come after the time-out
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
	stop := g.reader(enter)
	begin := time.Now()
	g.no(g.backend.Up())
	load.Duration, load.Rate = 3*time.Second, 500
	flowing, err := load.Run(t.Context())
	g.no(err)
	want += flowing.Accepted
	g.drained(3 * time.Minute)
	took := time.Since(begin)
	stop()
	if got != want {
		t.Errorf("the backend got %d messages of %d", got, want)
	}
	t.Logf("drained in %v (%.0f a second), while %d new messages came", took.Round(time.Millisecond), float64(want)/took.Seconds(), flowing.Accepted)
	g.no(g.broker.Stop())
	g.settledAt(want)
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
			t.Skipf("a file system to fill can be mounted as root alone, with the right to mount: %s", out)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: TestDiskFull") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	g := &gate{T: t, backend: backend.Start(t)}
	b, err := broker.New(broker.Options{
		Devices: []string{"sensor_001"}, BackendURL: g.backend.URL(), Conf: "allow_anonymous true", Listeners: withoutIdentity, Quiet: true,
	})
	g.no(err)
	g.broker = b
	defer func() { g.no(b.Close()) }()
	if err := syscall.Mount("tmpfs", b.Path("state"), "tmpfs", 0, "size=8m,mode=777"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	defer func() { g.no(syscall.Unmount(b.Path("state"), syscall.MNT_DETACH)) }()
	g.no(b.Start())
	g.watch()
	d := g.device("sensor_001")
	c := g.connect(d, mqtt5)
	g.accept(c, 1, d.Sign("1"))
	ballast := b.Path("state/ballast") // beside what the journal sets aside
	g.no(os.WriteFile(ballast, make([]byte, 1<<20), 0o600))

	large := `"` + strings.Repeat("x", 60000) + `"`
	var refused device.Message
	accepted := 0
	for refused.Bytes == nil {
		m := d.Sign(large)
		if ack := g.publish(c, d.DataTopic(), 1, m.Bytes); ack.Code == device.NotAuthorized {
			refused = m
		} else if accepted++; accepted > 200 {
			t.Fatal("the disk does not fill up")
		} else {
			g.expect(d.DataTopic(), m)
		}
	}
	_, err = b.WaitLog(g.limit(), 0, broker.Contains("bouncer: refused ", "reason=overloaded", "no space left on device"))
	g.no(err)
	t.Logf("%d messages until the disk was full", accepted)
	// Others are served, and what was accepted is delivered.
	for range 3 {
		operator := g.connectAs(d.Anonymous().Via(b.Address(1)), mqtt5, "operator")
		if ack := g.publish(operator, "news", 1, []byte("hello")); !ack.Accepted() {
			t.Error(ack)
		}
		g.refuse(c, d.DataTopic(), 1, d.Sign(large), "overloaded")
	}
	g.delivered("news", []byte("hello"))
	for _, m := range g.accepted {
		g.posted(m.Message)
	}

	g.no(os.Remove(ballast))
	for deadline := time.Now().Add(patience); !g.publish(c, d.DataTopic(), 1, refused.Bytes).Accepted(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("there is room, and publishes are still refused")
		}
	}
	g.expect(d.DataTopic(), refused)
	g.posted(refused)
	g.accept(c, 1, d.Sign("2"))
	_, err = b.WaitLog(g.limit(), 0, broker.Contains("bouncer: the journal stores messages again"))
	g.no(err)
	g.no(b.Stop())
	g.settledAt(accepted + 3)
}

// TestStateDirAway: what could not be kept is not acknowledged, /healthz says so, and when the same files are back it
// goes on by itself.
func TestStateDirAway(t *testing.T) {
	g := newGate(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.connect(g.device("sensor_001"), mqtt5)
	g.accept(c, 1, c.Sign("1"))
	state := g.broker.Path("state")
	began := time.Now()
	g.no(os.Rename(state, state+".away"))
	g.healthSays(503, "was removed or renamed")
	if took := time.Since(began); took > 3*time.Second { // it takes less than one where nothing else is busy
		t.Errorf("noticed after %v", took)
	}
	g.refuse(c, c.DataTopic(), 1, c.Sign("2"), "overloaded")
	g.no(os.Rename(state+".away", state))
	g.healthSays(200, "")
	g.accept(c, 1, c.Sign("3"))
}
