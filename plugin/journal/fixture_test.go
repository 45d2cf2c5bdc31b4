package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if child := os.Getenv("JOURNAL_TEST_CHILD"); child != "" {
		children[child](os.Getenv("JOURNAL_TEST_DIR"))
		return
	}
	goleak.VerifyTestMain(m)
}

const epoch = 1_790_000_000

// A fixture is a directory and the options to open a journal in it.
type fixture struct {
	t *testing.T
	Options
	logged *testkit.Log
	clock  time.Time
	mu     sync.Mutex // guards clock
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, logged: new(testkit.Log), clock: time.Unix(epoch, 0)}
	f.Options = Options{
		Dir:      filepath.Join(t.TempDir(), "journal"),
		MaxBytes: 64 << 20,
		Sync:     time.Millisecond,
		Keep:     10 * time.Minute,
		Log:      slog.New(slog.NewTextHandler(f.logged, nil)),
		now: func() time.Time {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.clock
		},
	}
	return f
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(d)
}

// A recovered message, none of it borrowed.
type recovered struct {
	pos     Position
	message Accepted
	outcome Outcome
}

func (f *fixture) open() (*Journal, []recovered) {
	f.t.Helper()
	j, all, err := f.tryOpen()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { j.Close() })
	return j, all
}

func (f *fixture) tryOpen() (*Journal, []recovered, error) {
	var all []recovered
	j, err := Open(f.Options, func(pos Position, a *Accepted, o Outcome) {
		all = append(all, recovered{pos, clone(a), o})
	})
	return j, all, err
}

func clone(a *Accepted) Accepted {
	c := *a
	c.Topic, c.Payload, c.Envelope = bytes.Clone(a.Topic), bytes.Clone(a.Payload), bytes.Clone(a.Envelope)
	return c
}

func (f *fixture) close(j *Journal) {
	f.t.Helper()
	if err := j.Close(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) path(name string) string { return filepath.Join(f.Dir, name) }

func (f *fixture) wantLogged(text string) {
	f.t.Helper()
	if !strings.Contains(f.logged.String(), text) {
		f.t.Errorf("not logged: %q\n%s", text, f.logged)
	}
}

// snapshot is the directory as a crash would leave it now.
func (f *fixture) snapshot() *fixture {
	f.t.Helper()
	c := newFixture(f.t)
	now := c.Options.now
	c.Options = f.Options
	c.Options.now, c.clock = now, f.now()
	c.Dir = filepath.Join(f.t.TempDir(), "journal")
	c.Log = slog.New(slog.NewTextHandler(c.logged, nil))
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	for !f.copyTo(c.Dir) {
	}
	return c
}

// copyTo copies every file, and reports whether no segment was dropped meanwhile, so that it is as of one moment.
func (f *fixture) copyTo(dir string) bool {
	f.t.Helper()
	state := func() []byte {
		b, err := os.ReadFile(f.path(droppedState + stateSuffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.t.Fatal(err)
		}
		return b
	}
	before := state()
	if err := os.RemoveAll(dir); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(f.path(e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, e.Name()), b, 0o600)
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
	return bytes.Equal(before, state())
}

// idOf is what is left of a settled message.
func idOf(a *Accepted) Accepted {
	return Accepted{Device: a.Device, MessageID: a.MessageID, Tag: a.Tag, TopicHash: a.TopicHash, QoS: a.QoS, Retain: a.Retain,
		Timestamp: a.Timestamp, Client: a.Client, Legacy: a.Legacy}
}

// message returns the i-th message, different from every other.
func message(i int) *Accepted {
	a := &Accepted{
		Device:     fmt.Sprintf("sensor_%03d", i%7),
		QoS:        uint8(i % 3),
		Retain:     i%4 == 0,
		TopicHash:  [8]byte{byte(i), 1},
		Client:     uint32(i) * 2654435761,
		Timestamp:  epoch + int64(i%5),
		AcceptedAt: time.Unix(epoch, int64(i)).UTC(),
		Topic:      fmt.Appendf(nil, "device/sensor_%03d/data", i%7),
		Payload:    fmt.Appendf(nil, `{"n":%d,"x":%q}`, i, strings.Repeat("x", i*31%180)),
	}
	copy(a.MessageID[:], fmt.Sprintf("%016d", i))
	copy(a.Tag[:], fmt.Sprintf("tag%05d", i))
	if i%4 == 0 {
		a.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	}
	return a
}

func appendAll(t *testing.T, j *Journal, from, to int) []recovered {
	t.Helper()
	var all []recovered
	for i := from; i < to; i++ {
		pos, err := j.Append(message(i))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, recovered{pos, *message(i), Pending})
	}
	return all
}

// wantRecovered holds what was recovered against what was appended. Of settled messages the ids may be all that is left.
func wantRecovered(t *testing.T, got, want []recovered) {
	t.Helper()
	ids := make(map[[16]byte]Accepted)
	for _, r := range got {
		if r.outcome == Settled {
			ids[r.message.MessageID] = r.message
		}
	}
	if len(ids) > 0 {
		got = slices.DeleteFunc(slices.Clone(got), func(r recovered) bool { return r.outcome == Settled })
		want = slices.DeleteFunc(slices.Clone(want), func(r recovered) bool {
			id, is := ids[r.message.MessageID]
			if is && (r.outcome == Pending || !reflect.DeepEqual(id, idOf(&r.message))) {
				t.Fatalf("of %+v the id is left: %+v", r, id)
			}
			return is
		})
	}
	if len(got) != len(want) {
		t.Fatalf("recovered %d messages, want %d", len(got), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("recovered\n%+v, want\n%+v", got[i], want[i])
		}
	}
}

func (j *Journal) segmentsNow() []uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Sorted(maps.Keys(j.segments))
}

var message0 = message(0)

// allWith is all, those at the positions with an outcome.
func allWith(all []recovered, o Outcome, at []Position) []recovered {
	all = slices.Clone(all)
	for i := range all {
		if slices.Contains(at, all[i].pos) {
			all[i].outcome = o
		}
	}
	return all
}

// buildLog returns the bytes of a log with n messages, and where each is.
func buildLog(n int) (log []byte, seed uint32, offsets []uint32) {
	h := header{kind: kindLog, number: 1, salt: salt{1, 2, 3}, created: time.Unix(epoch, 0)}
	seed = h.salt.seed(1)
	log = make([]byte, logStart)
	copy(log, h.encode())
	copy(log[headerCopy:], h.encode())
	for i := range n {
		offsets = append(offsets, uint32(len(log)))
		log = appendRecord(log, message(i), uint32(len(log)), seed)
	}
	return log, seed, offsets
}
