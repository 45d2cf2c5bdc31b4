package test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestRevocation: bouncerctl disables a device and removes one; the connected client is disconnected within a second, and
// what it publishes on another connection is refused.
func TestRevocation(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "sensor_002", "idle"}})
	one, two := g.Device("sensor_001"), g.Device("sensor_002")
	neighbour := g.Connect(two, harness.MQTT311)
	g.Accept(neighbour, 1, two.Sign("1"))

	const rounds = 10
	var gone, refused []time.Duration
	for i := range rounds {
		c := g.Connect(one, harness.Protocol(i%2))
		g.Accept(c, 1, one.Sign("22"))
		g.Bouncerctl(program, "device", "disable", "sensor_001")
		done := time.Now()
		select {
		case <-c.Done():
		case <-time.After(harness.Patience):
			t.Fatal("the client stays connected")
		}
		gone = append(gone, time.Since(done))
		again := g.Connect(one, harness.Protocol(i%2))
		g.Refuse(again, again.DataTopic(), 1, one.Sign("22"), "disabled")
		refused = append(refused, time.Since(done))
		g.Bouncerctl(program, "device", "enable", "sensor_001")
		g.Must(again.Close())
		again = g.Connect(one, harness.MQTT5) // an MQTT 3.1.1 client is not told
		g.Eventually("enabled again", func() bool {
			return g.Publish(again, again.DataTopic(), 1, one.Sign("23").Bytes).Accepted()
		})
		g.Must(again.Close())
	}
	slices.Sort(gone)
	t.Logf("disconnected after %v at the median, %v at worst; reconnected and refused after %v at worst",
		gone[rounds/2], gone[rounds-1], slices.Max(refused))
	if worst := gone[rounds-1]; worst > time.Second {
		t.Errorf("disconnected only after %v", worst)
	}

	// Also who has never published.
	idle := g.Connect(g.Device("idle"), harness.MQTT5)
	g.Must(idle.Subscribe(g.Limit(), idle.ResponseTopic(), 1))
	g.Bouncerctl(program, "device", "remove", "idle")
	select {
	case <-idle.Done():
	case <-time.After(time.Second):
		t.Error("a removed device stays connected")
	}
	g.Accept(neighbour, 1, two.Sign("2"))
}

// TestLiveDevices: what the gateway knows of devices, as an operator sees it while the backend refuses one, and once the
// broker has ended.
func TestLiveDevices(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"slow", "quick", "silent"}, HTTP: true})
	g.Backend.Script(func(r *backend.Request) backend.Answer {
		if r.Device == "slow" {
			return backend.Answer{Status: 503}
		}
		return backend.OK(r)
	})
	slow, quick := g.Device("slow"), g.Device("quick")
	one, two := g.Connect(slow, harness.MQTT5), g.Connect(quick, harness.MQTT5)
	first := slow.Sign("1")
	for _, m := range []device.Message{first, slow.Sign("2")} {
		if !g.Publish(one, one.DataTopic(), 1, m.Bytes).Accepted() {
			t.Fatal("a good message was refused")
		}
	}
	g.Accept(two, 1, quick.Sign("3"))
	for range 3 {
		g.Refuse(one, one.DataTopic(), 1, first, "replay")
	}
	g.Refuse(one, one.DataTopic(), 1, slow.Sign(`"good"`).Tampered("good", "evil"), "bad_signature")

	holds := func(text string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(text) {
				t.Errorf("no line %q in\n%s", line, text)
			}
		}
	}
	const ago = `\S+Z \(\d+ s ago\)`
	g.Eventually("a request failed", func() bool { return strings.Contains(g.Bouncerctl(program, "device", "show", "slow"), " failed") })
	holds(g.Bouncerctl(program, "device", "show", "slow"), `State +enabled`, `Gateway +since `+ago, `Last accepted +`+ago, `Accepted +2`,
		`Refused +4: bad_signature 1, replay 3`, `Pending +2, the oldest for \d+\.\d s; \d+ requests? failed`)
	holds(g.Bouncerctl(program, "device", "show", "quick"), `Last accepted +`+ago, `Accepted +1`, `Refused +0`, `Pending +0`)
	holds(g.Bouncerctl(program, "device", "show", "silent"), `Last accepted +not since then`, `Accepted +0`, `Refused +0`, `Pending +0`)
	var shown struct {
		Live struct {
			ID       string `json:"device_id"`
			Accepted int
			Refused  map[string]int
			Pending  int
		}
	}
	g.Must(json.Unmarshal([]byte(g.Bouncerctl(program, "device", "show", "slow", "--json")), &shown))
	if l := shown.Live; l.ID != "slow" || l.Accepted != 2 || l.Refused["replay"] != 3 || l.Pending != 2 {
		t.Errorf("%+v", l)
	}
	holds(g.Bouncerctl(program, "top", "--count", "1", "--interval", "100ms"), `\S+Z accepted=.* pending=2 .* slowest=slow oldest=\d+\.\ds`)

	g.Backend.Script(backend.OK)
	g.Posted(first)
	g.Eventually("all delivered", func() bool { return pending(g.Ask("GET", "/v1/devices/slow", "")) == 0 })
	if text := g.Bouncerctl(program, "top", "--count", "1", "--interval", "100ms"); strings.Contains(text, "slowest") {
		t.Error(text)
	}

	g.Must(g.Broker.Stop())
	holds(g.Bouncerctl(program, "device", "show", "slow"), `State +enabled`, `Gateway +not known: .*connection refused; is the broker running, and does it listen there\?`)
	if out, err := exec.Command(program, "top", "--config", g.Broker.Path("bouncer.toml")).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "connection refused") || bytes.Count(out, []byte("\n")) != 1 {
		t.Errorf("%v %s", err, out)
	}
}

// pending is what waits of the device that was asked about; -1: it is not said.
func pending(s harness.Answer) int {
	d := struct{ Pending int }{-1}
	_ = json.Unmarshal(s.Text, &d)
	return d.Pending
}

// TestRotation: both secrets are accepted until the old one ends by itself.
func TestRotation(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	old := g.Device("sensor_001")
	c := g.Connect(old, harness.MQTT5)
	g.Accept(c, 1, old.Sign("1"))
	out := filepath.Join(t.TempDir(), "rotated")
	g.Bouncerctl(program, "device", "rotate", "sensor_001", "--grace", "3s", "--out", out)
	secret, err := os.ReadFile(filepath.Join(out, "secret"))
	g.Must(err)
	renewed := *old
	renewed.Secret = secret
	accepted := func(m device.Message) bool { return g.Publish(c, c.DataTopic(), 1, m.Bytes).Accepted() }
	g.Eventually("the new secret is accepted", func() bool { return accepted(renewed.Sign("2")) })
	if !accepted(old.Sign("3")) {
		t.Error("the old secret is refused before its end")
	}
	g.Eventually("the old secret ends", func() bool { return !accepted(old.Sign("4")) })
	if !accepted(renewed.Sign("5")) {
		t.Error("the new secret is refused")
	}
}

// TestPinning: of two certificates of a device, the one that is not pinned is refused, to read as well.
func TestPinning(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}})
	pinned := g.Device("sensor_001")
	certPEM, keyPEM, err := g.Broker.CA().IssueDevice("sensor_001", time.Now(), time.Hour)
	g.Must(err)
	other := new(*pinned)
	other.Certificate, err = tls.X509KeyPair(certPEM, keyPEM)
	g.Must(err)
	mine, thief := g.Connect(pinned, harness.MQTT5), g.Connect(other, harness.MQTT5)
	g.Accept(mine, 1, pinned.Sign("1"))
	g.Accept(thief, 1, other.Sign("2"))
	sum := sha256.Sum256(pinned.Certificate.Certificate[0])
	file := filepath.Join(t.TempDir(), "device.crt")
	g.Must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pinned.Certificate.Certificate[0]}), 0o600))
	g.Bouncerctl(program, "device", "pin", "sensor_001", file)
	if shown := g.Bouncerctl(program, "device", "show", "sensor_001"); !strings.Contains(shown, fmt.Sprintf("%x", sum)) {
		t.Error(shown)
	}
	g.Eventually("the other certificate is refused", func() bool {
		return !g.Publish(thief, thief.DataTopic(), 1, other.Sign("3").Bytes).Accepted()
	})
	_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("reason=no_tls_identity"))
	g.Must(err)
	if err := thief.Subscribe(g.Limit(), thief.ResponseTopic(), 1); err == nil {
		t.Error("the other certificate reads responses")
	}
	g.Accept(mine, 1, pinned.Sign("5"))
	g.Bouncerctl(program, "device", "unpin", "sensor_001")
	g.Eventually("any certificate is accepted", func() bool {
		return g.Publish(thief, thief.DataTopic(), 1, other.Sign("6").Bytes).Accepted()
	})
}

// TestHotReload: SIGHUP has bouncer.toml read again; a bad file changes nothing, and the broker continues. The audit log
// has all of it.
func TestHotReload(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Settings: map[string]any{"audit.file": "state/audit.jsonl"}})
	one := g.Device("sensor_001")
	c := g.Connect(one, harness.MQTT5)
	long := `"` + strings.Repeat("x", 2000) + `"`
	g.Accept(c, 1, one.Sign(long))
	reload := func(settings map[string]any, want string) {
		g.Helper()
		mark := g.Broker.Log().Mark()
		g.Must(g.Broker.SetSettings(settings))
		g.Must(g.Broker.Signal(syscall.SIGHUP))
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains(want))
		g.Must(err)
	}
	reload(map[string]any{"publish.max_bytes": 1000}, "bouncer.toml was reloaded")
	g.Refuse(c, c.DataTopic(), 1, one.Sign(long), "too_large")
	reload(map[string]any{"publish.max_bytes": 5, "publish.max_bad_signatures": 1}, "bouncer.toml was not reloaded")
	g.Refuse(c, c.DataTopic(), 1, one.Sign(long), "too_large")
	g.Accept(c, 1, one.Sign("1"))
	reload(map[string]any{"publish.max_bytes": 65536, "publish.tolerance": "1m"}, "need a restart of the broker settings=publish.tolerance")
	g.Accept(c, 1, one.Sign(long))

	// Another program puts the audit log aside.
	file := g.Broker.Path("state/audit.jsonl")
	g.Must(os.Rename(file, file+".old"))
	reload(nil, "bouncer.toml was reloaded")
	g.Must(g.Broker.Stop())
	events := func(file string) (all string) {
		content, err := os.ReadFile(file)
		g.Must(err)
		for line := range bytes.Lines(content) {
			var r struct{ Event, Reason, Result string }
			g.Must(json.Unmarshal(line, &r))
			all += strings.TrimRight(r.Event+"/"+r.Reason+r.Result, "/") + " "
		}
		return all
	}
	before, after := events(file+".old"), events(file)
	if want := "start reload/ok denied/too_large reload/failed denied/too_large reload/ok "; !strings.HasPrefix(before+after, want) || !strings.HasSuffix(after, "stop ") {
		t.Errorf("%s| %s", before, after)
	}
}

// TestAdministrator runs testdata/*.txtar: what an administrator does, on a broker of their own.
func TestAdministrator(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	plugin, err := broker.FindPlugin()
	if err != nil {
		t.Fatal(err)
	}
	mosquitto, err := broker.Find()
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "administrator")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })  // the scripts run in parallel, after this function
	if err := os.Chmod(root, 0o755); err != nil { // for the broker's user
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata",
		WorkdirRoot: root,
		Setup: func(env *testscript.Env) error {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer listener.Close()
			_, port, _ := net.SplitHostPort(listener.Addr().String())
			posted, err := backend.New(backend.DefaultAddr)
			if err != nil {
				return err
			}
			env.Defer(func() { _ = posted.Close() })
			env.Values["backend"] = posted
			env.Setenv("PORT", port)
			env.Setenv("BACKEND", posted.URL())
			env.Setenv("PLUGIN", filepath.Join(env.WorkDir, "mosquitto_bouncer.so"))
			env.Setenv("MOSQUITTO", mosquitto)
			env.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
			text, err := os.ReadFile(plugin) // where the broker's user can read it
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(env.WorkDir, "mosquitto_bouncer.so"), text, 0o755); err != nil {
				return err
			}
			return os.Chmod(env.WorkDir, 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// listening waits for the broker's port.
			"listening": func(ts *testscript.TestScript, _ bool, _ []string) {
				for deadline := time.Now().Add(harness.Patience); ; time.Sleep(10 * time.Millisecond) {
					conn, err := net.Dial("tcp", "127.0.0.1:"+ts.Getenv("PORT"))
					if err == nil {
						_ = conn.Close()
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("the broker does not listen: %v", err)
					}
				}
			},
			// snippet FILE OUT [LAST] copies the commands that a bundle's README says to paste; with LAST, such as mosquitto_rr,
			// the last one is that which the README has instead of mosquitto_pub.
			"snippet": func(ts *testscript.TestScript, _ bool, args []string) {
				_, after, _ := strings.Cut(ts.ReadFile(args[0]), "paste all lines at once:\n\n")
				commands, _, found := strings.Cut(after, "\n\n")
				if !found {
					ts.Fatalf("no commands in %s", args[0])
				}
				if len(args) > 2 {
					before, _, _ := strings.Cut(commands, "mosquitto_pub")
					_, last, found := strings.Cut(after, "\n\n    "+args[2]+" ")
					if !found {
						ts.Fatalf("no %s in %s", args[2], args[0])
					}
					commands = before + args[2] + " " + strings.TrimSpace(last)
				}
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(commands+"\n"), 0o644))
			},
			// posted N waits until the backend has had so many requests, and fails if it has more.
			"posted": func(ts *testscript.TestScript, _ bool, args []string) {
				b := ts.Value("backend").(*backend.Backend)
				for deadline := time.Now().Add(harness.Patience); ; time.Sleep(10 * time.Millisecond) {
					n := len(b.Requests())
					if fmt.Sprint(n) == args[0] {
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("%d requests reached the backend, want %s", n, args[0])
					}
				}
			},
			// reload sends SIGHUP to the broker, and waits for what it says of it.
			"reload": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, cmd := range ts.BackgroundCmds() {
					ts.Check(cmd.Process.Signal(syscall.SIGHUP))
				}
				for deadline := time.Now().Add(harness.Patience); !strings.Contains(ts.ReadFile("broker.log"), "bouncer.toml was reloaded"); time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						ts.Fatalf("not reloaded; the broker's log:\n%s", ts.ReadFile("broker.log"))
					}
				}
			},
			// accepted and refused repeat publish.sh in the present directory until it is so: a change takes a moment.
			"accepted": func(ts *testscript.TestScript, _ bool, _ []string) { untilSaid(ts, "") },
			"refused":  func(ts *testscript.TestScript, _ bool, _ []string) { untilSaid(ts, "Not authorized") },
		},
	})
}

// untilSaid runs publish.sh until it says want, or nothing if that is empty.
func untilSaid(ts *testscript.TestScript, want string) {
	for deadline := time.Now().Add(harness.Patience); ; time.Sleep(100 * time.Millisecond) {
		cmd := exec.Command("sh", "-eu", ts.MkAbs("publish.sh"))
		cmd.Dir = ts.MkAbs(".")
		said, err := cmd.CombinedOutput()
		if err == nil && (string(said) == want || want != "" && strings.Contains(string(said), want)) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("publish.sh: %v: %q, want %q", err, said, want)
		}
	}
}
