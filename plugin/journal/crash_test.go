package journal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// A crashTest has a journal collect its segments, and between any two changes of its files holds what a crash would leave
// against what was accepted.
type crashTest struct {
	t      *testing.T
	f      *fixture
	random *rand.Rand // guarded by mu
	fails  func(*os.File) bool

	running bool // guarded by mu; Open needs a disk that works

	mu       sync.Mutex // held while a message is appended or settled, and while the journal's files are copied
	accepted map[Position]*recovered
	taken    map[string]int
	crashes  []*crashPoint
	durable  []byte            // the dropped state that the disk has for sure
	synced   map[string]int64  // bytes of collectors that it has
	removed  map[string][]byte // every file that ever was, as it was last
}

// A crashPoint is the journal's files at one moment.
type crashPoint struct {
	step     string
	files    map[string][]byte
	accepted map[Position]recovered
	now      time.Time
	durable  []byte
	synced   map[string]int64
	removed  map[string][]byte
}

const crashesOfAStep = 7 // at most

func newCrashTest(t *testing.T, seed uint64) *crashTest {
	c := &crashTest{t: t, f: newFixture(t), random: rand.New(rand.NewPCG(11, seed)), accepted: make(map[Position]*recovered),
		taken: make(map[string]int), synced: make(map[string]int64), removed: make(map[string][]byte)}
	c.f.SegmentBytes, c.f.MaxBytes = minSegmentBytes, 4<<20
	c.f.after = c.after
	c.f.fsync = c.fsync
	return c
}

// after is called by the journal's goroutine, which changes nothing until it returns.
func (c *crashTest) after(step string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken[step] > 0 && c.random.IntN(3) > 0 || c.taken[step] == crashesOfAStep {
		return
	}
	c.taken[step]++
	s := &crashPoint{step: step, files: c.read(), accepted: make(map[Position]recovered), now: c.f.now(), durable: c.durable,
		synced: maps.Clone(c.synced), removed: maps.Clone(c.removed)}
	for pos, r := range c.accepted {
		s.accepted[pos] = *r
	}
	c.crashes = append(c.crashes, s)
}

func (c *crashTest) read() map[string][]byte {
	files := make(map[string][]byte)
	entries, err := os.ReadDir(c.f.Dir)
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != reserveName && name != lockName {
			b, err := os.ReadFile(c.f.path(name))
			if err != nil {
				panic(err)
			}
			files[name], c.removed[name] = b, b
		}
	}
	return files
}

// fsync fails where it is to fail, and notes what has reached the disk.
func (c *crashTest) fsync(f *os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running && c.fails != nil && c.fails(f) {
		return syscall.EIO
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		c.durable, err = os.ReadFile(c.f.path(droppedState + stateSuffix))
		if errors.Is(err, os.ErrNotExist) {
			c.durable, err = nil, nil
		}
	} else if isCollector(f) {
		c.synced[filepath.Base(f.Name())] = info.Size()
	} else {
		delete(c.synced, filepath.Base(f.Name())) // the number of a collector that could not be made
	}
	return err
}

func isCollector(f *os.File) bool {
	h, err := readLogHeader(f)
	return err == nil && h.kind == kindCollector
}

// fill appends messages, of which some are settled at once, others later, and some never.
func (c *crashTest) fill(j *Journal, n int) {
	c.t.Helper()
	for range n {
		c.mu.Lock()
		a := message(len(c.accepted))
		a.Timestamp = c.f.now().Unix()
		a.Payload = bytes.Repeat([]byte{'p'}, 1+c.random.IntN(1500))
		pos, err := j.Append(a)
		if err != nil {
			c.mu.Unlock()
			c.t.Fatal(err)
		}
		c.accepted[pos] = &recovered{pos, clone(a), Pending}
		for pos, r := range c.accepted {
			if r.outcome == Pending && c.random.IntN(40) == 0 && pos.offset()%5 != 0 {
				r.outcome = Outcome(1 + c.random.IntN(2))
				j.Done(pos, r.outcome)
			}
		}
		later := c.random.IntN(20) == 0
		c.mu.Unlock()
		if later {
			c.f.advance(5 * time.Second)
		}
	}
}

// open opens the journal as it is now; what it finds settled is.
func (c *crashTest) open() *Journal {
	c.t.Helper()
	c.running = false // there is no other goroutine
	j, all := c.f.open()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = true
	for _, r := range all {
		if r.outcome != Settled {
			c.accepted[r.pos].outcome = r.outcome
		}
	}
	return j
}

// check opens a copy of the files and holds what is in it against what was accepted. Only a power failure tears.
func (s *crashPoint) check(t *testing.T, what string, files map[string][]byte, power bool) {
	t.Helper()
	f := newFixture(t)
	f.SegmentBytes, f.MaxBytes, f.clock = minSegmentBytes, 4<<20, s.now
	f.fsync = func(*os.File) error { return nil }
	if err := os.Mkdir(f.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		write(t, f.path(name), b)
	}
	f.Log = slog.New(slog.NewTextHandler(f.logged, nil))
	j, all := f.open()
	defer f.close(j)
	fatal := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("after %q, %s: %s\n%s", s.step, what, fmt.Sprintf(format, args...), f.logged)
	}
	ids := make(map[[16]byte]Accepted)
	given := make(map[Position]bool)
	last := Position(0)
	for _, r := range all {
		if r.outcome == Settled {
			ids[r.message.MessageID] = r.message
			continue
		}
		w, known := s.accepted[r.pos]
		if !known || r.pos <= last || !reflect.DeepEqual(r.message, w.message) || r.outcome != Pending && r.outcome != w.outcome {
			fatal("after %v recovered %+v, want %+v", last, r, w)
		}
		last, given[r.pos] = r.pos, true
		if r.outcome != Pending {
			continue
		}
		var a Accepted
		if _, err := j.Read(r.pos, &a, nil); err != nil || !reflect.DeepEqual(clone(&a), w.message) {
			fatal("read %v: %+v, %v", r.pos, a, err)
		}
	}
	oldest := s.now.Add(-f.Keep).Unix()
	for pos, w := range s.accepted {
		id, is := ids[w.message.MessageID]
		switch {
		case is && !reflect.DeepEqual(id, idOf(&w.message)):
			fatal("of %+v the id is left: %+v", w, id)
		case given[pos], w.outcome != Pending && (is || w.message.Timestamp < oldest):
		default:
			fatal("lost: %+v", w)
		}
	}
	st := j.Stats()
	if st.Accepted != uint64(len(s.accepted)) || st.Missing+st.Unreadable+st.Foreign+st.DamagedOutcomes+st.Panics != 0 ||
		!power && st.TornBytes+st.Damaged != 0 {
		fatal("of %d: %+v", len(s.accepted), st)
	}
}

// powerFailures are what a power failure may leave instead of the files as they are.
func (s *crashPoint) powerFailures(random *rand.Rand) map[string]map[string][]byte {
	former := maps.Clone(s.files)
	delete(former, droppedState+stateSuffix)
	if s.durable != nil {
		former[droppedState+stateSuffix] = s.durable
	}
	// What was unlinked comes back, as far as it was not dropped before the fsync of the directory.
	back := maps.Clone(s.files)
	for name, b := range s.removed {
		if _, is := back[name]; !is && !strings.HasSuffix(name, newSuffix) {
			back[name] = b
		}
	}
	all := map[string]map[string][]byte{"the former state": former, "files come back": back}
	for name, synced := range s.synced {
		b, is := s.files[name]
		if !is || int64(len(b)) <= synced {
			continue
		}
		cut, holes := maps.Clone(s.files), maps.Clone(s.files)
		cut[name] = b[:synced+random.Int64N(int64(len(b))-synced)]
		hole := bytes.Clone(b)
		at := synced + random.Int64N(int64(len(b))-synced)
		clear(hole[at:min(at+512, int64(len(b)))])
		holes[name] = hole
		all["copies cut off"], all["a hole in the copies"] = cut, holes
	}
	return all
}

// Wherever the process ends or the power fails while settled messages are collected, and whatever fails meanwhile: what
// was accepted is there once, in its order, as pending, or its id is.
func TestCrashWhileCollecting(t *testing.T) {
	for name, fails := range map[string]func(c *crashTest, f *os.File) bool{
		"nothing fails": nil,
		"fsync of the directory fails": func(c *crashTest, f *os.File) bool {
			info, err := f.Stat()
			return err == nil && info.IsDir() && c.random.IntN(3) == 0
		},
		"fsync of copies fails": func(c *crashTest, f *os.File) bool { return c.random.IntN(3) == 0 && isCollector(f) },
		"saving fails": func(c *crashTest, f *os.File) bool {
			return strings.HasSuffix(f.Name(), newSuffix) && c.random.IntN(3) == 0
		},
		"too early": nil,
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			c := newCrashTest(t, uint64(len(name)))
			if fails != nil {
				c.fails = func(f *os.File) bool { return fails(c, f) }
			}
			if name == "too early" {
				c.f.BeforeDrop = func(int64) error {
					c.mu.Lock()
					defer c.mu.Unlock()
					return []error{nil, ErrNotYet, syscall.ENOSPC}[c.random.IntN(3)]
				}
			}
			rounds := 10
			if testing.Short() {
				rounds = 5
			}
			for range rounds { // a start collects at once
				j := c.open()
				c.fill(j, 60)
				testkit.Eventually(t, "the journal to be at rest", func() bool { return j.next.Load() != nil })
				c.fill(j, 20)
				_ = j.Close() // an fsync may fail
			}
			for _, s := range c.crashes {
				s.check(t, "a kill", s.files, false)
				for what, files := range s.powerFailures(c.random) {
					s.check(t, what, files, true)
				}
			}
			t.Logf("%d messages, crashes after %v", len(c.accepted), c.taken)
			if testing.Short() {
				return // too few rounds to be sure of every kind
			}
			if c.taken["dropped"] == 0 || c.taken["copies written"] == 0 || fails != nil && c.taken["undone"] == 0 && name != "fsync of the directory fails" {
				t.Error("too little was collected")
			}
		})
	}
}
