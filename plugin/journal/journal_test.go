package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// A logBuffer takes what a journal logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A fixture is a directory and the options to open a journal in it.
type fixture struct {
	t *testing.T
	Options
	logged *logBuffer
	clock  time.Time
	mu     sync.Mutex // guards clock
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, logged: new(logBuffer), clock: time.Unix(epoch, 0)}
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

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	f := newFixture(t)
	j, before := f.open()
	if len(before) != 0 {
		t.Fatalf("recovered %d messages from nothing", len(before))
	}
	extremes := []*Accepted{
		{},
		message(1),
		{Device: strings.Repeat("d", MaxDevice), Topic: bytes.Repeat([]byte("t"), MaxTopic),
			Traceparent: strings.Repeat("p", MaxTraceparent), Payload: bytes.Repeat([]byte("y"), 3<<20), QoS: 2, Envelope: bytes.Repeat([]byte("e"), 5000),
			Timestamp: math.MaxInt64, AcceptedAt: time.Unix(0, math.MaxInt64).UTC()},
		{Timestamp: math.MinInt64, AcceptedAt: time.Unix(0, math.MinInt64+1).UTC(), Payload: []byte{0xff, 'R', 'J', 0xfe}},
		message(2),
	}
	var want []recovered
	for _, a := range extremes {
		a.Topic, a.Payload = append([]byte{}, a.Topic...), append([]byte{}, a.Payload...)
		pos, err := j.Append(a)
		if err != nil {
			t.Fatal(err)
		}
		if len(want) > 0 && pos <= want[len(want)-1].pos {
			t.Errorf("position %v after %v", pos, want[len(want)-1].pos)
		}
		want = append(want, recovered{pos, *a, Pending})
	}
	var got Accepted
	var buf []byte
	for _, w := range want {
		var err error
		if buf, err = j.Read(w.pos, &got, buf); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, w.message) {
			t.Errorf("read %+v, want %+v", got, w.message)
		}
	}
	j.Done(want[1].pos, Delivered)
	j.Done(want[3].pos, Dead)
	want[1].outcome, want[3].outcome = Delivered, Dead
	wantStats := func(j *Journal) {
		t.Helper()
		st := j.Stats()
		if st.Accepted != 5 || st.Delivered != 1 || st.Dead != 1 || st.Pending != 3 || st.Err != nil {
			t.Errorf("stats %+v", st)
		}
	}
	wantStats(j)
	f.close(j)
	j, all := f.open()
	wantRecovered(t, all, want)
	wantStats(j)
	if _, err := j.Read(want[4].pos, &got, buf); err != nil || !reflect.DeepEqual(got, want[4].message) {
		t.Errorf("read %+v, %v", got, err)
	}
}

func TestReadErrors(t *testing.T) {
	f := newFixture(t)
	j, _ := f.open()
	all := appendAll(t, j, 0, 2)
	var a Accepted
	for pos, want := range map[Position]error{
		0:                 ErrNotFound,
		99 << 32:          ErrNotFound,
		all[0].pos + 8:    ErrDamaged, // in the middle of a record
		all[1].pos + 4096: ErrDamaged, // behind the end
		all[0].pos - 8192: ErrDamaged, // the header
	} {
		if _, err := j.Read(pos, &a, nil); !errors.Is(err, want) {
			t.Errorf("read %v: %v, want %v", pos, err, want)
		}
	}
	f.close(j)
	if _, err := j.Read(all[0].pos, &a, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := j.Append(message(3)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	j.Done(all[0].pos, Delivered) // and nothing happens
	if err := j.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestLimits(t *testing.T) {
	f := newFixture(t)
	f.MaxBytes = 1 << 20
	j, _ := f.open()
	for _, c := range []struct {
		a    Accepted
		want string
	}{
		{Accepted{Device: strings.Repeat("x", MaxDevice+1)}, "journal: message too large: a device id of 256 bytes, at most 255 are possible"},
		{Accepted{Topic: make([]byte, MaxTopic+1)}, "journal: message too large: a topic of 65536 bytes, at most 65535 are possible"},
		{Accepted{Traceparent: strings.Repeat("x", MaxTraceparent+1)}, "journal: message too large: a traceparent of 256 bytes, at most 255 are possible"},
		{Accepted{Payload: make([]byte, MaxPayload+1)}, "journal: message too large: a payload of 268435457 bytes, at most 268435456 are possible"},
		{Accepted{Payload: make([]byte, 1<<20)}, "journal: message too large: 1048672 bytes, the journal may take 1048576"},
	} {
		if _, err := j.Append(&c.a); !errors.Is(err, ErrTooLarge) || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if err := j.Stats().Err; err != nil {
		t.Errorf("the journal says it is out of order: %v", err)
	}
	f.MaxBytes = 65535
	if _, err := Open(f.Options, nothing); err == nil || err.Error() != "journal: MaxBytes is 65535, at least 65536 are needed" {
		t.Errorf("%v", err)
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	f := newFixture(t)
	j, _ := f.open()
	a := message(5)
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := j.Append(a); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// More segments than files may be open for reading, read in every order, while they are appended to.
func TestReadAcrossSegments(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = minSegmentBytes
	j, _ := f.open()
	var want []recovered
	for i := 0; len(j.segmentsNow()) < 2*maxReaders; i += 10 {
		want = append(want, appendAll(t, j, i, i+10)...)
		waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	}
	var readers sync.WaitGroup
	for g := range 4 {
		readers.Go(func() {
			var a Accepted
			var buf []byte
			random := rand.New(rand.NewPCG(1, uint64(g)))
			for range 3000 {
				w := want[random.IntN(len(want))]
				var err error
				if buf, err = j.Read(w.pos, &a, buf); err != nil || !reflect.DeepEqual(a, w.message) {
					t.Errorf("read %+v, %v", a, err)
					return
				}
			}
		})
	}
	readers.Wait()
	j.mu.Lock()
	open := len(j.open)
	j.mu.Unlock()
	if open > maxReaders {
		t.Errorf("%d files are open", open)
	}
	f.close(j)
	_, all := f.open()
	wantRecovered(t, all, want)
}

func (j *Journal) segmentsNow() []uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Sorted(maps.Keys(j.segments))
}

// Random operations against a plain list, with restarts and crashes in between.
func TestModel(t *testing.T) {
	seeds := uint64(3)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, seed))
			f := newFixture(t)
			f.SegmentBytes = minSegmentBytes
			j, _ := f.open()
			model := map[Position]*recovered{}
			byID := map[[16]byte]*recovered{}
			settled := func(r *recovered) {
				if r.outcome == Pending {
					r.outcome = Outcome(1 + random.IntN(2))
					j.Done(r.pos, r.outcome)
				}
			}
			// reopen checks what is recovered. Of a crash, the latest outcomes may be lost.
			reopen := func(crash bool) {
				var all []recovered
				if crash {
					old := j
					f = f.snapshot()
					j, all = f.open()
					old.Close()
				} else {
					f.close(j)
					j, all = f.open()
				}
				seen := map[Position]bool{}
				last := Position(0)
				for _, r := range all {
					if r.outcome == Settled {
						w := byID[r.message.MessageID]
						if w == nil {
							continue // it was there no more at an earlier start, and needs not be
						}
						if w.outcome == Pending && !crash || r.pos != 0 || !reflect.DeepEqual(r.message, idOf(&w.message)) {
							t.Fatalf("recovered %+v, want the id of %+v", r, *w)
						}
						seen[w.pos] = true
						continue
					}
					w := model[r.pos]
					if w == nil {
						t.Fatalf("%v: never appended", r.pos)
					}
					if r.pos <= last {
						t.Fatalf("%v comes after %v", r.pos, last)
					}
					last = r.pos
					if crash && r.outcome == Pending {
						w.outcome = Pending
					}
					if !reflect.DeepEqual(r, *w) {
						t.Fatalf("recovered %+v, want %+v", r, *w)
					}
					seen[r.pos] = true
				}
				limit := f.now().Add(-f.Keep).Unix()
				for pos, w := range model {
					if !seen[pos] {
						if w.outcome == Pending || w.message.Timestamp >= limit {
							t.Fatalf("lost %+v", w)
						}
						delete(model, pos)
						delete(byID, w.message.MessageID)
					}
				}
				if st := j.Stats(); st.Damaged+st.TornBytes+st.Missing+st.Unreadable+st.Foreign+st.DamagedOutcomes+st.Panics != 0 {
					t.Fatalf("stats %+v", st)
				}
			}
			accepted, n := uint64(0), 0
			for range 1500 {
				switch k := random.IntN(100); {
				case k < 70:
					n++
					a := message(n)
					a.Timestamp = f.now().Unix() + int64(random.IntN(3))
					a.Payload = bytes.Repeat([]byte{byte(n)}, random.IntN(2000))
					pos, err := j.Append(a)
					if err != nil {
						t.Fatal(err)
					}
					accepted++
					w := recovered{pos, clone(a), Pending}
					w.message.Payload = append([]byte{}, a.Payload...)
					if model[pos] != nil {
						t.Fatalf("position %v is used twice", pos)
					}
					model[pos] = &w
					byID[a.MessageID] = &w
				case k < 85:
					for _, r := range model {
						if random.IntN(8) == 0 {
							settled(r)
						}
					}
				case k < 97:
					for pos, r := range model {
						var a Accepted
						_, err := j.Read(pos, &a, nil)
						if errors.Is(err, ErrNotFound) && r.outcome != Pending {
							break
						}
						if err != nil || !reflect.DeepEqual(a, r.message) {
							t.Fatalf("read %v: %+v, %v, want %+v", pos, a, err, r.message)
						}
						break
					}
				case k < 98:
					f.advance(20 * time.Minute)
				default:
					reopen(k == 98)
				}
			}
			f.advance(time.Hour)
			for _, r := range model {
				settled(r)
			}
			waitFor(t, "all segments to be dropped but the active, the next and the collector", func() bool { return len(j.segmentsNow()) <= 3 })
			reopen(false)
			st := j.Stats()
			if st.Accepted != accepted || st.Pending != 0 || st.Accepted != st.Delivered+st.Dead {
				t.Errorf("stats %+v, want %d accepted", st, accepted)
			}
		})
	}
}

// The broker's thread appends while others read and settle, and segments are dropped beneath them.
func TestConcurrency(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = minSegmentBytes
	f.Keep = -time.Hour // everything may go when it is settled
	var newest int64
	f.BeforeDrop = func(n int64) error { newest = max(newest, n); return nil }
	j, _ := f.open()
	const messages = 20_000
	queue := make(chan recovered, 1000)
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			var a Accepted
			var buf []byte
			for w := range queue {
				var err error
				if buf, err = j.Read(w.pos, &a, buf); err != nil || !reflect.DeepEqual(a, w.message) {
					t.Errorf("read %+v, %v", a, err)
				}
				j.Done(w.pos, Delivered)
				j.Stats()
			}
		})
	}
	others.Go(func() {
		for i := range 100 {
			if err := j.SaveState("concurrent", fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range messages {
		pos, err := j.Append(message(i))
		if err != nil {
			t.Fatal(err)
		}
		queue <- recovered{pos: pos, message: *message(i)}
	}
	close(queue)
	others.Wait()
	waitFor(t, "segments to be dropped", func() bool { return len(j.segmentsNow()) <= 2 })
	st := j.Stats()
	if st.Accepted != messages || st.Delivered != messages || st.Pending != 0 || st.Dropped == 0 || st.Panics != 0 {
		t.Errorf("stats %+v", st)
	}
	waitFor(t, "the account of bytes to add up", func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		sum := int64(0)
		for _, s := range j.segments {
			sum += s.charge()
		}
		return sum == j.used.Load()
	})
	f.close(j)
	if newest != epoch+4 {
		t.Errorf("newest timestamp %d", newest)
	}
	if b, err := LoadState(f.Dir, "concurrent"); string(b) != "99" || err != nil {
		t.Errorf("state %q, %v", b, err)
	}
}

func TestMaxBytes(t *testing.T) {
	f := newFixture(t)
	f.MaxBytes = 256 << 10
	j, _ := f.open()
	var all []Position
	for {
		pos, err := j.Append(message(0))
		if err != nil {
			if err != ErrFull {
				t.Fatal(err)
			}
			break
		}
		all = append(all, pos)
		waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	}
	if n := len(all); n < 600 {
		t.Errorf("full after %d messages", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = j.Append(message0) }); n != 0 {
		t.Errorf("%v allocations to refuse", n)
	}
	if err := j.Stats().Err; err != ErrFull {
		t.Errorf("state %v", err)
	}
	waitFor(t, "a log line", func() bool {
		return strings.Contains(f.logged.String(), "the journal cannot store messages; they are refused")
	})
	for _, pos := range all {
		j.Done(pos, Delivered)
	}
	f.advance(time.Hour)
	waitFor(t, "room", func() bool { return j.Stats().Err == nil })
	if _, err := j.Append(message(0)); err != nil {
		t.Error(err)
	}
	waitFor(t, "a log line", func() bool { return strings.Contains(f.logged.String(), "the journal stores messages again") })
	f.close(j)
	var size int64
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > f.MaxBytes {
		t.Errorf("%d bytes on the disk", size)
	}
}

var message0 = message(0)

// The next segment is late: the active one grows.
func TestLateSegment(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = minSegmentBytes
	disk := make(chan struct{}) // closed: it works
	var stalls switchable
	f.fsync = func(*os.File) error {
		if stalls.on() {
			<-disk
		}
		return nil
	}
	j, _ := f.open()
	waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	stalls.set(true)
	var want []recovered
	for i := 0; j.active.number == 1 || j.active.end < 3*minSegmentBytes; i++ {
		want = append(want, appendAll(t, j, i, i+1)...)
	}
	if n := want[len(want)-1].pos.segment(); n != 2 {
		t.Errorf("segment %d", n)
	}
	close(disk)
	waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	want = append(want, appendAll(t, j, len(want), len(want)+10)...)
	if n := want[len(want)-1].pos.segment(); n != 3 {
		t.Errorf("segment %d", n)
	}
	_, all := f.snapshot().open()
	wantRecovered(t, all, want)
}

// A segment is dropped when all in it is settled and old, not before, and in any order.
func TestDrop(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = minSegmentBytes
	var sweeps atomic.Int64 // each asks for the time
	f.Options.now = func() time.Time {
		f.mu.Lock()
		defer f.mu.Unlock()
		sweeps.Add(1)
		return f.clock
	}
	var mu sync.Mutex
	var calls int
	refuse := errors.New("not now")
	f.BeforeDrop = func(newest int64) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if newest != epoch+4 {
			t.Errorf("newest %d", newest)
		}
		return refuse
	}
	j, _ := f.open()
	var all []recovered
	for i := 0; len(j.segmentsNow()) < 6; i++ {
		all = append(all, appendAll(t, j, i, i+1)...)
		waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	}
	inSegment := map[uint32][]Position{}
	for _, r := range all {
		inSegment[r.pos.segment()] = append(inSegment[r.pos.segment()], r.pos)
	}
	numbers := slices.Sorted(maps.Keys(inSegment))
	done := func(n uint32, leave int) {
		for _, pos := range inSegment[n][leave:] {
			j.Done(pos, Delivered)
		}
	}
	done(numbers[0], 1)
	j.Done(inSegment[numbers[0]][1], Delivered) // twice for one does not make up for another
	waitFor(t, "all but one of a segment to be collected", func() bool { return j.Stats().Dropped == 1 })
	done(numbers[1], 0)
	done(numbers[2], 0)
	waitFor(t, "two whole segments to be collected", func() bool { return j.Stats().Dropped == 3 })
	for _, n := range numbers[:3] {
		for _, name := range []string{logName(n), outcomesName(n)} {
			if _, err := os.Stat(f.path(name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is there: %v", name, err)
			}
		}
	}
	var a Accepted
	if _, err := j.Read(inSegment[numbers[0]][0], &a, nil); err != nil || a.MessageID != all[0].message.MessageID {
		t.Errorf("read of what was moved: %+v, %v", a, err)
	}
	if _, err := j.Read(inSegment[numbers[1]][0], &a, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("read of a collected message: %v", err)
	}
	// Their ids are there until they are old, and what is to be saved then is saved.
	f.advance(10 * time.Minute) // the newest is 10 min and 4 s from the epoch
	before := sweeps.Load()
	waitFor(t, "two sweeps", func() bool { return sweeps.Load() >= before+2 })
	mu.Lock()
	if calls != 0 {
		t.Errorf("ids were to be dropped within the time to keep")
	}
	mu.Unlock()
	last := j.Stats()
	f.close(j)

	// The gap is known, and so is what was in it.
	f.advance(5 * time.Second)
	j, got := f.open()
	wantRecovered(t, got, allWith(all, Delivered, append(slices.Concat(inSegment[numbers[1]], inSegment[numbers[2]]), inSegment[numbers[0]][1:]...)))
	after := j.Stats()
	if after.Missing != 0 || after.Accepted != uint64(len(all)) || after.Accepted != last.Accepted ||
		after.Delivered != uint64(len(inSegment[numbers[0]])-1+len(inSegment[numbers[1]])+len(inSegment[numbers[2]])) ||
		after.Pending != uint64(len(all))-after.Delivered {
		t.Errorf("stats %+v", after)
	}
	waitFor(t, "an attempt to drop", func() bool { mu.Lock(); defer mu.Unlock(); return calls > 0 })
	waitFor(t, "a line in the log", func() bool {
		return strings.Contains(f.logged.String(), "the journal could not free the room of settled messages; trying again every second")
	})
	f.wantLogged("not now")
	mu.Lock()
	refuse = nil
	mu.Unlock()
	waitFor(t, "the old ids to be dropped", func() bool {
		ids := 0
		_, err := Inspect(f.Dir, func(_ Position, _ *Accepted, o Outcome) {
			if o == Settled {
				ids++
			}
		})
		return err == nil && ids == 0
	})
	f.close(j)
	j, got = f.open()
	for _, r := range got {
		if r.outcome != Pending {
			t.Fatalf("there is %+v", r)
		}
	}
	if _, err := j.Read(inSegment[numbers[0]][0], &a, nil); err != nil || a.MessageID != all[0].message.MessageID {
		t.Errorf("read of what was moved twice: %+v, %v", a, err)
	}
}

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

// A crash after a drop was decided, before its files are gone.
func TestDropIsFinished(t *testing.T) {
	f := newFixture(t)
	j, _ := f.open()
	all := appendAll(t, j, 0, 10)
	f.close(j)
	first := all[0].pos.segment()
	d := dropped{Delivered: 10, Segments: []droppedName{{first, j.current.salt}}}
	if err := d.save(f.Dir, (*os.File).Sync); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	if st := j.Stats(); len(got) != 0 || st.Accepted != 10 || st.Delivered != 10 || st.Pending != 0 {
		t.Errorf("recovered %d messages, stats %+v", len(got), st)
	}
	if _, err := os.Stat(f.path(logName(first))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if pos, err := j.Append(message(0)); err != nil || pos.segment() <= first {
		t.Errorf("appended at %v, %v", pos, err)
	}
}

// An outcome that reached the disk before its message must not settle another.
func TestOutcomeWithoutItsMessage(t *testing.T) {
	f := newFixture(t)
	j, _ := f.open()
	all := appendAll(t, j, 0, 10)
	for _, r := range all[5:] {
		j.Done(r.pos, Delivered)
	}
	f.close(j)
	if err := os.Truncate(f.path(logName(1)), int64(all[5].pos.offset())); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	wantRecovered(t, got, all[:5])
	more := appendAll(t, j, 5, 10)
	if more[0].pos == all[5].pos {
		t.Errorf("position %v is used again", more[0].pos)
	}
	f.close(j)
	j, got = f.open()
	wantRecovered(t, got, append(all[:5:5], more...))
	for _, r := range got { // and the segment can go
		j.Done(r.pos, Delivered)
	}
	f.advance(time.Hour)
	waitFor(t, "the segments to be dropped", func() bool { return j.Stats().Dropped == 2 })

	// The same where nothing is left of the log.
	f = newFixture(t)
	j, _ = f.open()
	all = appendAll(t, j, 0, 10)
	for _, r := range all {
		j.Done(r.pos, Delivered)
	}
	f.close(j)
	if err := os.Truncate(f.path(logName(1)), logStart); err != nil {
		t.Fatal(err)
	}
	j, _ = f.open()
	more = appendAll(t, j, 0, 10)
	f.close(j)
	_, got = f.open()
	wantRecovered(t, got, more)
}

func TestState(t *testing.T) {
	f := newFixture(t)
	j, _ := f.open()
	if _, err := LoadState(f.Dir, "spans"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for _, data := range []string{"one", "", strings.Repeat("x", 1<<20)} {
		if err := j.SaveState("spans", []byte(data)); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadState(f.Dir, "spans"); string(got) != data || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	for _, name := range []string{"", "../x", "A", "a.b", "dropped"} {
		if err := j.SaveState(name, nil); err == nil {
			t.Errorf("saved a state named %q", name)
		}
	}
	if err := j.SaveState("spans", []byte("good")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.path("spans.state"))
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(b) {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(f.path("flipped.state"), c, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadState(f.Dir, "flipped"); !errors.Is(err, ErrDamaged) {
			t.Fatalf("bit %d: %v", bit, err)
		}
	}
	// What a crash leaves of one that was being written.
	if err := os.WriteFile(f.path("spans.state.new"), b[:5], 0o600); err != nil {
		t.Fatal(err)
	}
	f.close(j)
	j, _ = f.open()
	if got, err := LoadState(f.Dir, "spans"); string(got) != "good" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := os.Stat(f.path("spans.state.new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if st := j.Stats(); st.Foreign != 0 {
		t.Errorf("stats %+v", st)
	}
}

// An fsync that fails is never repeated as if nothing had happened: the segment gets nothing more.
func TestSyncFails(t *testing.T) {
	broken := errors.New("input/output error")
	for _, sync := range []time.Duration{0, time.Millisecond} {
		t.Run(sync.String(), func(t *testing.T) {
			f := newFixture(t)
			f.Sync = sync
			var fails switchable
			f.fsync = func(file *os.File) error {
				if fails.on() {
					return broken
				}
				return file.Sync()
			}
			j, _ := f.open()
			want := appendAll(t, j, 0, 3)
			waitFor(t, "the next segment, and an fsync", func() bool { return j.next.Load() != nil && j.Stats().Syncs > 0 })
			fails.set(true)
			pos, err := j.Append(message(3))
			if sync == 0 {
				if !errors.Is(err, broken) {
					t.Fatalf("acknowledged without fsync: %v", err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, recovered{pos, *message(3), Pending})
			}
			waitFor(t, "the failure to be noticed", func() bool { return j.Stats().SyncErrors == 1 && j.Stats().Distrusted == 1 })
			waitFor(t, "a log line", func() bool { return strings.Contains(f.logged.String(), "fsync of the journal failed") })
			fails.set(false)
			more := appendAll(t, j, 4, 6)
			if was, is := want[0].pos.segment(), more[0].pos.segment(); is == was {
				t.Errorf("appended to segment %d, whose fsync failed", is)
			}
			want = append(want, more...)
			st := j.Stats()
			if st.Distrusted != 1 || st.Err != nil || st.Syncs < 2 || st.SyncTime == 0 {
				t.Errorf("stats %+v", st)
			}
			f.close(j)
			_, all := f.open()
			wantRecovered(t, all, want)
		})
	}
}

// While no segment can be made durable nothing is accepted, and then it goes on.
func TestSyncFailsForLong(t *testing.T) {
	broken := errors.New("input/output error")
	f := newFixture(t)
	var fails switchable
	f.fsync = func(*os.File) error {
		if fails.on() {
			return broken
		}
		return nil
	}
	j, _ := f.open()
	waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	fails.set(true)
	want := appendAll(t, j, 0, 1)
	waitFor(t, "the failure to be noticed", func() bool { return j.Stats().Distrusted == 1 })
	want = append(want, appendAll(t, j, 1, 2)...) // in the segment that is ready
	waitFor(t, "the second failure to be noticed", func() bool { return j.Stats().Err != nil })
	if _, err := j.Append(message(2)); !errors.Is(err, broken) || !errors.Is(j.Stats().Err, broken) {
		t.Errorf("%v, %v", err, j.Stats().Err)
	}
	waitFor(t, "a log line", func() bool {
		return strings.Contains(f.logged.String(), "the journal's next segment could not be made; trying again every second")
	})
	fails.set(false)
	waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	want = append(want, appendAll(t, j, 2, 4)...)
	if st := j.Stats(); st.Err != nil || st.Distrusted != 2 {
		t.Errorf("stats %+v", st)
	}
	waitFor(t, "a log line", func() bool { return strings.Contains(f.logged.String(), "the journal's next segment is made") })
	f.close(j)
	j, all := f.open()
	wantRecovered(t, all, want)

	// Nothing waits to be synced when the disk fails again: a failure noticed before the append would refuse it.
	waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	fails.set(true)
	appendAll(t, j, 4, 5)
	if err := j.Close(); err == nil {
		t.Error("closed as if all were well")
	}
}

type switchable struct {
	mu    sync.Mutex
	state bool
}

func (s *switchable) on() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *switchable) set(state bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

// A panic in the hook does not end the process, nor the journal.
func TestPanicInHook(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = minSegmentBytes
	var panicked switchable
	f.BeforeDrop = func(int64) error {
		if !panicked.on() {
			panicked.set(true)
			panic("boom")
		}
		return nil
	}
	j, _ := f.open()
	waitFor(t, "the next segment", func() bool { return j.next.Load() != nil })
	for _, r := range appendAll(t, j, 0, 200) {
		j.Done(r.pos, Dead)
	}
	f.advance(time.Hour)
	waitFor(t, "a drop after the panic", func() bool { return j.Stats().Dropped > 0 && j.Stats().Panics == 1 })
	f.wantLogged("panic=boom")
}

// failingDisk does not read some of its blocks.
type failingDisk struct {
	io.ReaderAt
	from, to int64
}

func (d failingDisk) ReadAt(b []byte, at int64) (int, error) {
	if at < d.to && at+int64(len(b)) > d.from {
		n := 0
		if at < d.from {
			n, _ = d.ReaderAt.ReadAt(b[:d.from-at], at)
		}
		return n, errors.New("input/output error")
	}
	return d.ReaderAt.ReadAt(b, at)
}

func TestUnreadableBlock(t *testing.T) {
	log, seed, offsets := buildLog(200)
	from := int64(logStart + 3*blockSize)
	var want []uint32
	for i, o := range offsets {
		end := int64(len(log))
		if i+1 < len(offsets) {
			end = int64(offsets[i+1])
		}
		if int64(o) >= from+blockSize || end <= from {
			want = append(want, o)
		}
	}
	var got []uint32
	result := scan(failingDisk{bytes.NewReader(log), from, from + blockSize}, int64(len(log)), seed,
		func(offset uint32, _ int, _ *Accepted) { got = append(got, offset) })
	if !slices.Equal(got, want) || result.unreadable != blockSize || result.damaged == 0 {
		t.Errorf("found %d of %d, want %d; %+v", len(got), len(offsets), len(want), result)
	}
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
