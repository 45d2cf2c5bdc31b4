package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"mosquitto-bouncer/plugin/deadletter"
)

// newDeadLetters is a directory made by init, and its letters as the broker has them open.
func newDeadLetters(t *testing.T) (dir string, store *deadletter.Store) {
	t.Helper()
	dir = newDir(t)
	store, err := deadletter.Open(filepath.Join(dir, "state", "dead.db"), deadletter.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return dir, store
}

// kill adds the nth letter; died is how long ago it died.
func kill(t *testing.T, store *deadletter.Store, n int, died time.Duration, change func(*deadletter.Letter)) deadletter.Letter {
	t.Helper()
	l := deadletter.Letter{
		Device:     fmt.Sprintf("sensor_%03d", n%2),
		MessageID:  fmt.Sprintf("550e8400-e29b-41d4-a716-%012x", n),
		Timestamp:  1727712000 + int64(n),
		AcceptedAt: time.Unix(1727712001, 0),
		DiedAt:     time.Now().Add(-died),
		Topic:      "device/sensor/data",
		Payload:    fmt.Appendf(nil, `{"n":%d}`, n),
		Reason:     "refused",
		Status:     422,
		Excerpt:    "unit missing",
		Attempts:   1,
	}
	if change != nil {
		change(&l)
	}
	if err := store.Add(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	return l
}

func deadArgs(dir, verb string, args ...string) []string {
	return append([]string{"dead", verb, "--config", filepath.Join(dir, "bouncer.toml")}, args...)
}

// dead runs a dead command, which must succeed.
func dead(t *testing.T, dir, verb string, args ...string) string {
	t.Helper()
	return succeed(t, deadArgs(dir, verb, args...)...)
}

// column is the nth field of the lines of a list, its head and foot apart.
func column(listed string, n int) string {
	table, _, _ := strings.Cut(listed, "\n\n")
	var fields []string
	for _, line := range strings.Split(table, "\n")[1:] {
		if all := strings.Fields(line); len(all) > n {
			fields = append(fields, all[n])
		}
	}
	return strings.Join(fields, " ")
}

// cutRoom takes the line about the room off the end of a list.
func cutRoom(listed string) (list, room string) {
	i := strings.LastIndex(listed, "Room: ")
	if i < 0 {
		return listed, ""
	}
	return listed[:i], listed[i:]
}

func TestDeadList(t *testing.T) {
	dir, store := newDeadLetters(t)
	if got, want := dead(t, dir, "list"), "ID   DIED   DEVICE   MESSAGE ID   REASON   STATUS   ATTEMPTS   BYTES   STATE\n\n"+
		"Shown: 0 of 0 letters. In all: 0 letters, 0 to be requeued, 0 bytes of payload.\nRoom: "; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " of 1073741824 bytes.\n") {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	first := kill(t, store, 1, 48*time.Hour, nil)
	expired := kill(t, store, 2, time.Hour, func(l *deadletter.Letter) { l.Reason, l.Status, l.Attempts = "expired", 0, 12 })
	kill(t, store, 3, 0, nil)
	dead(t, dir, "requeue", "2")
	want := fmt.Sprintf(`ID   DIED                   DEVICE       MESSAGE ID                             REASON    STATUS   ATTEMPTS   BYTES   STATE
2    %s   sensor_000   550e8400-e29b-41d4-a716-000000000002   expired   -        12         7       requeued
1    %s   sensor_001   550e8400-e29b-41d4-a716-000000000001   refused   422      1          7       dead

Shown: 2 of 2 letters. In all: 3 letters, 1 to be requeued, 21 bytes of payload.
`, expired.DiedAt.UTC().Format(time.RFC3339), first.DiedAt.UTC().Format(time.RFC3339))
	listed, room := cutRoom(dead(t, dir, "list"))
	if !regexp.MustCompile(`^Room: [1-9]\d* of 1073741824 bytes\. The most of a device: sensor_001, [1-9]\d* of 107374182 bytes\.\n$`).MatchString(room) {
		t.Errorf("room: %q", room)
	}
	head, tail, _ := strings.Cut(listed, "\n")
	_, tail, _ = strings.Cut(tail, "\n") // the third letter's
	if got := strings.Replace(head+"\n"+tail, "Shown: 3 of 3", "Shown: 2 of 2", 1); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	for _, test := range []struct {
		args []string
		ids  string
		foot string
	}{
		{[]string{}, "3 2 1", "Shown: 3 of 3 letters."},
		{[]string{"--device", "sensor_001"}, "3 1", "Shown: 2 of 2 letters."},
		{[]string{"--reason", "expired"}, "2", "Shown: 1 of 1 letter."},
		{[]string{"--since", "24h"}, "3 2", "Shown: 2 of 2 letters."},
		{[]string{"--since", "1d"}, "3 2", "Shown: 2 of 2 letters."},
		{[]string{"--since", "30m"}, "3", "Shown: 1 of 1 letter."},
		{[]string{"--device", "sensor_001", "--since", "24h", "--reason", "refused"}, "3", "Shown: 1 of 1 letter."},
		{[]string{"--device", "sensor_009"}, "", "Shown: 0 of 0 letters."},
		{[]string{"--limit", "2"}, "3 2", "Shown: 2 of 3 letters."},
		{[]string{"--limit", "1", "--device", "sensor_001"}, "3", "Shown: 1 of 2 letters."},
		{[]string{"--limit", "0"}, "3 2 1", "Shown: 3 of 3 letters."},
	} {
		got, _ := cutRoom(dead(t, dir, "list", test.args...))
		if column(got, 0) != test.ids || !strings.HasSuffix(got, "\n\n"+test.foot+" In all: 3 letters, 1 to be requeued, 21 bytes of payload.\n") {
			t.Errorf("%q:\n%s", test.args, got)
		}
	}
}

func TestDeadListJSON(t *testing.T) {
	dir, store := newDeadLetters(t)
	if got, want := dead(t, dir, "list", "--json"), "{\"letters\":[\n],\"totals\":{\"matching\":0,\"letters\":0,\"bytes\":0,\"requeued\":0}}\n"; got != want {
		t.Errorf("got %q", got)
	}
	died := time.Date(2026, 11, 22, 12, 0, 0, 5e8, time.UTC)
	kill(t, store, 1, 0, func(l *deadletter.Letter) { l.DiedAt = died })
	kill(t, store, 2, 0, func(l *deadletter.Letter) {
		l.DiedAt = died.Add(-time.Second)
		l.Status, l.Reason, l.Traceparent = 0, "expired", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		l.Excerpt = "<é\x1b\x7f\u009b2J\u202e\U000e0001\">"
	})
	kill(t, store, 3, 0, func(l *deadletter.Letter) { l.DiedAt = died.Add(-time.Minute) })
	got := dead(t, dir, "list", "--json", "--limit", "2")
	const want = `{"letters":[
{"id":1,"device":"sensor_001","message_id":"550e8400-e29b-41d4-a716-000000000001","timestamp":1727712001,"accepted_at":"2024-09-30T16:00:01Z","died_at":"2026-11-22T12:00:00.5Z","topic":"device/sensor/data","bytes":7,"reason":"refused","status":422,"excerpt":"unit missing","attempts":1,"deaths":1,"requeued_at":null},
{"id":2,"device":"sensor_000","message_id":"550e8400-e29b-41d4-a716-000000000002","timestamp":1727712002,"accepted_at":"2024-09-30T16:00:01Z","died_at":"2026-11-22T11:59:59.5Z","topic":"device/sensor/data","bytes":7,"reason":"expired","status":null,"excerpt":"<é\u001b\u007f\u009b2J\u202e\udb40\udc01\">","attempts":1,"deaths":1,"requeued_at":null,"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
],"totals":{"matching":3,"letters":3,"bytes":21,"requeued":0}}
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	var parsed struct {
		Letters []struct{ Excerpt string }
	}
	if err := json.Unmarshal([]byte(got), &parsed); err != nil || parsed.Letters[1].Excerpt != "<é\x1b\x7f\u009b2J\u202e\U000e0001\">" {
		t.Errorf("%q, %v", parsed, err)
	}
}

func TestDeadShow(t *testing.T) {
	dir, store := newDeadLetters(t)
	died := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	kill(t, store, 1, 0, func(l *deadletter.Letter) {
		l.DiedAt, l.Traceparent = died, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		l.Payload = []byte(`{"temperature": 22.0, "room": "Küche"}`)
	})
	got := dead(t, dir, "show", "1")
	const want = `id:           1
state:        dead
device:       sensor_001
message id:   550e8400-e29b-41d4-a716-000000000001
timestamp:    1727712001 (2024-09-30T16:00:01Z)
topic:        device/sensor/data
traceparent:  00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
accepted:     2024-09-30T16:00:01Z
died:         2026-11-22T12:00:00Z
reason:       refused
status:       422
response:     "unit missing"
attempts:     1
deaths:       1
bytes:        39
payload:      {"temperature": 22.0, "room": "Küche"}
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	// The payload is exactly itself, whatever is in it; what is shown of it is fit for a terminal.
	payload := "{\"a\":\r\n\t\"\x1b[2J\u009b\u202e\xff\"" + strings.Repeat(" ", 2000) + "}\n"
	kill(t, store, 2, 0, func(l *deadletter.Letter) {
		l.Payload, l.Status, l.Topic, l.Excerpt = []byte(payload), 0, "device/a b/data", "\x1b]0;owned\a\nid: 7"
	})
	if got := dead(t, dir, "show", "--payload", "2"); got != payload {
		t.Errorf("got %q", got)
	}
	dead(t, dir, "requeue", "2")
	got = dead(t, dir, "show", "2")
	for _, line := range []string{
		"state:       requeued\n", "status:      -\n", `topic:       "device/a b/data"` + "\n",
		`response:    "\x1b]0;owned\a\nid: 7"` + "\n",
		`payload:     "{\"a\":\r\n\t\"\x1b[2J\u009b\u202e\xff\"` + strings.Repeat(" ", 1024-len("{\"a\":\r\n\t\"\x1b[2J\u009b\u202e\xff\"")) + `" ... (--payload prints all)` + "\n",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("%q is not in\n%q", line, got)
		}
	}
	if i := strings.IndexFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("%q is printed", got[i:])
	}
	fail(t, 1, "dead letter 3: no such letter; see bouncerctl dead list", deadArgs(dir, "show", "3")...)
}

func TestDeadRequeue(t *testing.T) {
	dir, store := newDeadLetters(t)
	for n := range 6 {
		kill(t, store, n+1, 0, nil)
	}
	requeued := func(want ...int64) {
		t.Helper()
		letters, err := store.Requeued(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for _, l := range letters {
			got = append(got, l.ID)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the broker is given %d, want %d", got, want)
		}
	}
	steps := func(args []string, want string, ids ...int64) {
		t.Helper()
		if got := dead(t, dir, "requeue", args...); got != want {
			t.Errorf("%q: %s", args, got)
		}
		requeued(ids...)
	}
	fail(t, 1, "dead letter 7: no such letter; see bouncerctl dead list", deadArgs(dir, "requeue", "1", "7")...)
	requeued()
	steps([]string{"4", "2"}, "Requeued 2 letters.\n", 2, 4)
	steps([]string{"2", "5"}, "Requeued 1 letter.\n", 2, 4, 5)
	steps([]string{"--device", "sensor_001"}, "Requeued 2 letters.\n", 1, 2, 3, 4, 5)
	steps([]string{"--device", "sensor_009"}, "Requeued 0 letters.\n", 1, 2, 3, 4, 5)
	steps([]string{"--all"}, "Requeued 1 letter.\n", 1, 2, 3, 4, 5, 6)
}

func TestDeadDrop(t *testing.T) {
	dir, store := newDeadLetters(t)
	for n := range 6 {
		kill(t, store, n+1, time.Duration(n)*time.Second, nil)
	}
	steps := func(args []string, want, left string) {
		t.Helper()
		if got := dead(t, dir, "drop", args...); got != want {
			t.Errorf("%q: %s", args, got)
		}
		if got := column(dead(t, dir, "list"), 0); got != left {
			t.Errorf("%q: %s is left, want %s", args, got, left)
		}
	}
	dead(t, dir, "requeue", "4")
	fail(t, 1, "dead letter 7: no such letter; see bouncerctl dead list", deadArgs(dir, "drop", "7", "1")...)
	fail(t, 2, "--all drops every dead letter for good; add --yes to do that; see bouncerctl dead drop --help", deadArgs(dir, "drop", "--all")...)
	steps([]string{"--device", "sensor_009"}, "Dropped 0 letters.\n", "1 2 3 4 5 6")
	steps([]string{"4"}, "Dropped 1 letter.\n", "1 2 3 5 6")
	steps([]string{"--device", "sensor_001"}, "Dropped 3 letters.\n", "2 6")
	steps([]string{"--all", "--yes"}, "Dropped 2 letters.\n", "")
	if letters, err := store.Requeued(t.Context(), 10); len(letters) != 0 || err != nil {
		t.Errorf("the broker is given %d letters, %v", len(letters), err)
	}
}

func TestDeadUsage(t *testing.T) {
	const none = "no letter given; name their numbers, --device ID or --all"
	const both = "numbers, --device and --all exclude each other"
	const notAnID = `"a/b" is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -)`
	for _, test := range []struct{ args, want string }{
		{"", "no command given; see bouncerctl dead --help"},
		{"lst", `unknown command "lst", did you mean "list"?; see bouncerctl dead --help`},
		{"list 7", `unexpected argument "7"`},
		{"list --limit -1", "--limit -1 is less than 0"},
		{"list --since -1h", `invalid argument "-1h" for "--since" flag: not a duration; write a number and a unit (s, m, h, d), for example 24h`},
		{"list --since 0", "--since 0s is not in the past"},
		{"list --since 1y", `invalid argument "1y" for "--since" flag: not a duration; write a number and a unit (s, m, h, d), for example 24h`},
		{"list --device a/b", notAnID},
		{"list --reason=", `--reason "" is not one of refused, expired, unreadable, unreadable_answer, panic`},
		{"show", "no letter given"},
		{"show 1 2", `unexpected argument "2", one letter at a time`},
		{"show x", `"x" is not the number of a letter`},
		{"show 0", `"0" is not the number of a letter`},
		{"show 9223372036854775808", `"9223372036854775808" is not the number of a letter`},
		{"requeue", none},
		{"drop", none},
		{"drop --yes", none},
		{"requeue 1 --all", both},
		{"drop --device a --all --yes", both},
		{"drop 1 --device a", both},
		{"drop 1 --device=", both},
		{"requeue --device a/b", notAnID},
		{"drop --device=", `"" is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -)`},
		{"drop 1 b", `"b" is not the number of a letter`},
	} {
		args := append([]string{"dead"}, strings.Fields(test.args)...)
		want := test.want
		if !strings.Contains(want, "--help") {
			want += "; see bouncerctl " + strings.Join(args[:2], " ") + " --help"
		}
		fail(t, 2, want, args...)
	}
}

func TestDeadConfig(t *testing.T) {
	dir := newDir(t)
	state := filepath.Join(dir, "state")
	const advice = "; the broker makes dead.db when it starts, so correct state_dir in bouncer.toml if it has run"
	for _, args := range [][]string{{"list"}, {"show", "1"}, {"requeue", "--all"}, {"drop", "1"}} {
		fail(t, 1, "there are no dead letters in "+state+advice, deadArgs(dir, args[0], args[1:]...)...)
	}
	if entries, err := os.ReadDir(state); len(entries) != 0 || err != nil {
		t.Errorf("%v was made, %v", entries, err)
	}
	writeFile(t, filepath.Join(state, "dead.db"), strings.Repeat("text ", 1000))
	fail(t, 1, "dead letters: "+state+"/dead.db: file is not a database; move it away, or restore it from a backup", deadArgs(dir, "list")...)
	fail(t, 1, "/nonexistent: cannot be read: no such file or directory; name an existing file, or create one with bouncerctl init",
		"dead", "list", "--config", "/nonexistent")
}

// TestDeadAsRoot: what root does leaves the broker able to write its database, also if root's command was killed.
func TestDeadAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this needs root")
	}
	dir, store := newDeadLetters(t)
	kill(t, store, 1, 0, nil)
	path := filepath.Join(dir, "state", "dead.db")
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	dead(t, dir, "requeue", "1")
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 65534 || stat.Gid != 65534 || info.Mode() != 0o640 {
			t.Errorf("%s belongs to %d:%d, mode %v", e.Name(), stat.Uid, stat.Gid, info.Mode())
		}
	}
}

// TestDeadHundredThousand: a list stays quick.
func TestDeadHundredThousand(t *testing.T) {
	dir, store := newDeadLetters(t)
	kill(t, store, 1, 0, nil)
	db, err := sql.Open("sqlite3", filepath.Join(dir, "state", "dead.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.Exec(`INSERT INTO letters (device, message_id, timestamp, accepted_at, died_at, topic, traceparent, bytes,
			reason, status, attempts, deaths, excerpt)
		WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
		SELECT printf('sensor_%03d', i % 1000), printf('550e8400-e29b-41d4-a716-%012x', i), timestamp, accepted_at,
			(i * 7919) % 100000, topic, traceparent, bytes, reason, status, attempts, deaths, excerpt
		FROM letters, n`); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string // among what is printed
	}{
		{[]string{}, "Shown: 100 of 100000 letters. In all: 100000 letters, 0 to be requeued, 700000 bytes of payload.\n"},
		{[]string{"--device", "sensor_007"}, "Shown: 100 of 100 letters. In all: 100000 letters, "},
		{[]string{"--json"}, `"totals":{"matching":100000,"letters":100000,`},
	} {
		start := time.Now()
		got := dead(t, dir, "list", append(test.args, "--limit", "100")...)
		took := time.Since(start)
		if lines := strings.Count(got, "550e8400"); lines != 100 || !strings.Contains(got, test.want) {
			t.Errorf("%q: %d letters", test.args, lines)
		}
		// To read them all takes a second and more; this is some milliseconds, and the start of the program.
		if took > 500*time.Millisecond {
			t.Errorf("%q took %v", test.args, took)
		}
	}
}
