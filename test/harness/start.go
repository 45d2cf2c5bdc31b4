package harness

import (
	"errors"
	"os"
	"strings"
	"testing"

	"mosquitto-bouncer/test/harness/broker"
)

// SoundTOML is a bouncer.toml that the plugin starts with. The cases of TestRefusesToStart change one line of it each.
const SoundTOML = `state_dir = "{dir}/state"
database  = "{dir}/devices.db"

[publish]
topics    = ["device/+/data"]
tolerance = "5m"
max_bytes = 65536

[backend]
url = "http://127.0.0.1:9/device/{device_id}/data"
timeout = "5s"
`

// BrokerPassword stands in files and settings that the log must not repeat.
const BrokerPassword = "correct-horse-battery-staple"

// StartRefused starts a broker that is to refuse: it ends by itself with a failure, without having opened a port, crashed or
// told a secret.
func StartRefused(t *testing.T, options broker.Options, prepare func(*testing.T, *broker.Broker)) *broker.Broker {
	t.Helper()
	b, err := broker.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the broker's log:\n\t%s", strings.Join(b.Log().Lines(0), "\n\t"))
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	if prepare != nil {
		prepare(t, b)
	}
	err = b.Start()
	exit, ended := errors.AsType[*broker.ExitError](err)
	if !ended {
		t.Fatalf("the broker was to refuse to start: %v", err)
	}
	if exit.Code < 1 {
		t.Errorf("%v; want an exit status that tells of a failure", exit)
	}
	if b.Log().Count(0, broker.Contains("listen socket")) > 0 {
		t.Errorf("the broker opened a port before it refused to start")
	}
	if b.Log().Count(0, broker.Contains("goroutine ")) > 0 || b.Log().Count(0, broker.Contains("internal error")) > 0 {
		t.Errorf("the broker crashed instead of refusing to start")
	}
	if b.Log().Count(0, broker.Contains(BrokerPassword)) > 0 {
		t.Errorf("the log has a secret in it")
	}
	return b
}

// WriteFile makes or replaces a file of the broker's, with this mode.
func WriteFile(t *testing.T, b *broker.Broker, name, text string, mode os.FileMode) {
	t.Helper()
	if err := b.WriteFile(name, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.Path(name), mode); err != nil {
		t.Fatal(err)
	}
}
