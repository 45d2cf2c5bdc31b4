package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/fleetstate"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/suspension"
)

// journalBytes is the size of the journal, which is what it is.
var journalBytes = regexp.MustCompile(`The journal takes \d+ bytes|"journal_bytes":\d+`)

// TestQueue: what waits is seen while the broker has the journal open.
func TestQueue(t *testing.T) {
	dir := newDir(t)
	state := filepath.Join(dir, "state")
	configArgs := []string{"--config", filepath.Join(dir, "bouncer.toml")}
	queue := func(args ...string) string {
		t.Helper()
		return journalBytes.ReplaceAllString(succeed(t, append(append([]string{"queue"}, configArgs...), args...)...), "JOURNAL")
	}
	fail(t, 1, "there is no journal in "+state+"; the broker makes it when it starts, so correct state_dir in bouncer.toml if it has run",
		append([]string{"queue"}, configArgs...)...)
	fail(t, 2, `unexpected argument "x"; see bouncerctl queue --help`, "queue", "x")

	j, err := journal.Open(journal.Options{
		Dir: filepath.Join(state, journal.DirName), MaxBytes: 1 << 20, Sync: time.Millisecond, Keep: time.Minute,
		Log: slog.New(slog.DiscardHandler),
	}, func(journal.Position, *journal.Accepted, journal.Outcome) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	if got, want := queue(), "DEVICE   MESSAGES   BYTES   OLDEST\n\nIn all: 0 messages of 0 devices, 0 bytes of payload. JOURNAL.\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	const noJSON = "{\"devices\":[\n],\"suspended\":[],\"totals\":{\"messages\":0,\"bytes\":0,\"devices\":0,JOURNAL,\"damaged_messages\":0,\"unreadable_segments\":0,\"suspended_urls\":0}}\n"
	if got := queue("--json"); got != noJSON {
		t.Errorf("got\n%swant\n%s", got, noJSON)
	}

	var positions []journal.Position
	for i, device := range []string{"sensor_002", "sensor_001", "sensor_003", "sensor_003", "sensor_001", "odd\x1b"} {
		at := time.Date(2026, 11, 22, 12, 0, i, 0, time.UTC)
		pos, err := j.Append(&journal.Accepted{
			Device: device, MessageID: [16]byte{byte(i)}, Timestamp: at.Unix(), AcceptedAt: at,
			Topic: []byte("device/x/data"), Payload: []byte(`{"n":1}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		positions = append(positions, pos)
	}
	j.Done(positions[0], journal.Delivered)
	j.Done(positions[1], journal.Dead)
	waitFor(t, func() bool { return strings.Contains(queue(), "In all: 4 messages of 3 devices") })
	want := `DEVICE       MESSAGES   BYTES   OLDEST
sensor_003   2          14      2026-11-22T12:00:02Z
"odd\x1b"    1          7       2026-11-22T12:00:05Z
sensor_001   1          7       2026-11-22T12:00:04Z

In all: 4 messages of 3 devices, 28 bytes of payload. JOURNAL.
`
	if got := queue(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want = `{"devices":[
{"device":"sensor_003","messages":2,"bytes":14,"oldest":"2026-11-22T12:00:02Z"},
{"device":"odd\u001b","messages":1,"bytes":7,"oldest":"2026-11-22T12:00:05Z"},
{"device":"sensor_001","messages":1,"bytes":7,"oldest":"2026-11-22T12:00:04Z"}
],"suspended":[],"totals":{"messages":4,"bytes":28,"devices":3,JOURNAL,"damaged_messages":0,"unreadable_segments":0,"suspended_urls":0}}
`
	if got := queue("--json"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	// Why nothing goes to NATS.
	away := fleetstate.State{Since: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Why: "NATS is not connected: \x1bfoo"}
	if err := fleetstate.Save(state, &away); err != nil {
		t.Fatal(err)
	}
	if got := queue() + queue("--json"); strings.Contains(got, "NATS") {
		t.Errorf("without [fleet] got\n%s", got)
	}
	configFile := filepath.Join(dir, "bouncer.toml")
	nats := regexp.MustCompile(`(?m)^url *=.*\n`).ReplaceAllString(readFile(t, configFile), "")
	nats = strings.Replace(nats, "\nservers = []", "\nservers = [\"nats://127.0.0.1:4222\"]\nname = \"gw-a\"\ndeliver = false", 1)
	if err := os.WriteFile(configFile, []byte(nats), 0o640); err != nil {
		t.Fatal(err)
	}
	if got := queue(); !strings.Contains(got, "\nNothing goes to NATS since 2026-11-22T12:00:00Z: \"NATS is not connected: \\x1bfoo\".\n") {
		t.Errorf("got\n%s", got)
	}
	if got := queue("--json"); !strings.Contains(got, `"fleet":{"since":"2026-11-22T12:00:00Z","why":"NATS is not connected: \u001bfoo"}}}`) {
		t.Errorf("got\n%s", got)
	}
	if err := fleetstate.Save(state, nil); err != nil {
		t.Fatal(err)
	}

	// A damaged message costs itself.
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(state, journal.DirName, "*.log"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("%q, %v", logs, err)
	}
	content := []byte(readFile(t, logs[0]))
	content[strings.LastIndex(string(content), "sensor_001")] ^= 1
	if err := os.WriteFile(logs[0], content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := queue(); !strings.Contains(got, "In all: 3 messages of 2 devices, 21 bytes of payload. JOURNAL.\n"+
		"Damaged, and not counted: 1 message, 0 segments.\n") {
		t.Errorf("got\n%s", got)
	}
}

// TestQueueResume: what the backend answered 410 for is shown, and resumed by name.
func TestQueueResume(t *testing.T) {
	dir := newDir(t)
	state := filepath.Join(dir, "state")
	configArgs := []string{"--config", filepath.Join(dir, "bouncer.toml")}
	call := func(args ...string) []string { return append(append([]string{"queue"}, args...), configArgs...) }
	fail(t, 1, "delivery is not suspended; no delivery is", call("resume")...)
	fail(t, 2, `unexpected argument "b", one device at a time; see bouncerctl queue resume --help`, "queue", "resume", "a", "b")

	j, err := journal.Open(journal.Options{
		Dir: filepath.Join(state, journal.DirName), MaxBytes: 1 << 20, Sync: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}, func(journal.Position, *journal.Accepted, journal.Outcome) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	set, _, err := suspension.Open(filepath.Join(state, suspension.DirName), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	set.Gone("", "http://backend")
	set.Gone("sensor_001", "http://backend/sensor_001")
	const shown = `Suspended, because the backend answered 410 Gone: all devices, sensor_001.` + "\nTo continue: bouncerctl queue resume\n"
	if got := succeed(t, call()...); !strings.Contains(got, shown) {
		t.Errorf("got\n%s", got)
	}
	if got := succeed(t, call("--json")...); !strings.Contains(got, `"suspended_urls":2`) || !strings.Contains(got, `"suspended":["","sensor_001"]`) {
		t.Errorf("got\n%s", got)
	}
	fail(t, 1, `delivery for sensor_002 is not suspended, but that for all devices is; to resume it: bouncerctl queue resume`, call("resume", "sensor_002")...)
	if got := succeed(t, call("resume")...); got != "Resumed: delivery\n" {
		t.Errorf("got %q", got)
	}
	fail(t, 1, `delivery is not suspended, but that for sensor_001 is; to resume it: bouncerctl queue resume sensor_001`, call("resume")...)
	if got := succeed(t, call("resume", "sensor_001")...); got != "Resumed: delivery for sensor_001\n" {
		t.Errorf("got %q", got)
	}
	var resumed []string
	set.Follow(func(device string) bool { resumed = append(resumed, device); return true })
	if len(resumed) != 2 {
		t.Errorf("resumed %q", resumed)
	}
}
