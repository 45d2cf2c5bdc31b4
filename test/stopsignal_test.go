package test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
)

// TestStopSignalAtTheStart: a SIGTERM or SIGINT that comes at the very moment when the port opens ends the broker in order.
// Without the plugin such a signal is lost now and then: the broker handles it, and then notes that it runs.
func TestStopSignalAtTheStart(t *testing.T) {
	const starts = 60
	b := broker.Start(t, broker.Options{Devices: []string{"sensor_001"}, Quiet: true})
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	binary, err := broker.Find()
	if err != nil {
		t.Fatal(err)
	}
	account, err := broker.Account()
	if err != nil {
		t.Fatal(err)
	}
	lost, opened := 0, time.Duration(0)
	for i := range starts {
		began := time.Now()
		p, err := broker.Command{Binary: binary, Config: b.Path("mosquitto.conf"), Credential: account, Log: &broker.Log{}}.Start()
		if err != nil {
			t.Fatal(err)
		}
		for {
			conn, err := net.Dial("tcp", b.Address(0))
			if err == nil {
				opened += time.Since(began)
				conn.Close()
				break
			}
			if p.Ended() != nil || time.Since(began) > harness.Patience {
				t.Fatalf("start %d: no port: %v", i, errors.Join(err, p.Ended()))
			}
		}
		if err := p.Signal([]syscall.Signal{syscall.SIGTERM, syscall.SIGINT}[i%2]); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Done():
		case <-time.After(harness.Patience):
			lost++
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
			continue
		}
		if exit, ok := errors.AsType[*broker.ExitError](p.Ended()); !ok || exit.Code != 0 {
			t.Errorf("start %d: %v", i, p.Ended())
		}
		if p.Log().Count(0, broker.Contains("bouncer: stopped")) != 1 {
			t.Errorf("start %d: the plugin was not stopped in order", i)
		}
	}
	t.Logf("%d of %d signals at the open port were lost; from the start to the open port %v on average", lost, starts, opened/starts)
	if lost > 0 {
		t.Errorf("%d of %d signals at the open port were lost", lost, starts)
	}
}

// TestStopSignalsAreTheBrokers: while the broker runs, SIGTERM and SIGINT are blocked in every thread but its own, and there
// they are not once it has ticked, or from the start where it never does.
func TestStopSignalsAreTheBrokers(t *testing.T) {
	for _, perListener := range []bool{false, true} {
		b := broker.Start(t, broker.Options{Devices: []string{"sensor_001"}, PerListenerSettings: perListener})
		pid := strconv.Itoa(b.Process().PID())
		others := 0
		tasks, err := filepath.Glob("/proc/" + pid + "/task/*/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if strings.Contains(task, "/task/"+pid+"/") {
				continue
			}
			if mask := blockedSignals(task); mask != 0 { // else the thread has ended
				others++
				if mask&stopSignals != stopSignals {
					t.Errorf("per_listener_settings %v: %s blocks %x, and may take the broker's signals", perListener, task, mask)
				}
			}
		}
		if others == 0 {
			t.Errorf("no thread but the broker's own among %q", tasks)
		}
		// As no other thread takes them, a stop in good order shows that the broker's own does. Its mask says less: Mosquitto 2.0
		// blocks them itself while it sleeps.
		if err := b.Stop(); err != nil {
			t.Errorf("per_listener_settings %v: %v", perListener, err)
		}
	}
}

const stopSignals = 1<<(syscall.SIGTERM-1) | 1<<(syscall.SIGINT-1)

// blockedSignals reads the mask of a thread; 0 if there is no such thread any more.
func blockedSignals(status string) (mask uint64) {
	text, err := os.ReadFile(status)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "SigBlk:"); found {
			mask, _ = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return mask
}

// TestGlobalPlugin: on Mosquitto 2.1 a plugin of global_plugin is asked about what a bridge brings, also with
// per_listener_settings true, and then may be used with such a bridge.
func TestGlobalPlugin(t *testing.T) {
	other := broker.Start(t, broker.Options{WithoutPlugin: true, Conf: "allow_anonymous true", Listeners: []string{""}})
	if !other.Version().AtLeast(2, 1, 0) {
		t.Skip("Mosquitto has global_plugin from 2.1 on")
	}
	plugin, err := broker.FindPlugin()
	if err != nil {
		t.Fatal(err)
	}
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001", "witness"}, WithoutPlugin: true, Plugin: plugin, PerListenerSettings: true,
		Conf: "global_plugin {plugin}\nplugin_opt_config_file {dir}/bouncer.toml\n" +
			"connection other\naddress " + other.Address(1) + "\ntopic # in 2\nnotifications false",
	})
	g.Watch()
	subscribedTo(g, other)
	throughBridge(g, other, "no_tls_identity")
}
