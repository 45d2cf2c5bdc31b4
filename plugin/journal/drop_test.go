package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

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
		testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
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
	testkit.Eventually(t, "all but one of a segment to be collected", func() bool { return j.Stats().Dropped == 1 })
	done(numbers[1], 0)
	done(numbers[2], 0)
	testkit.Eventually(t, "two whole segments to be collected", func() bool { return j.Stats().Dropped == 3 })
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
	testkit.Eventually(t, "two sweeps", func() bool { return sweeps.Load() >= before+2 })
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
	testkit.Eventually(t, "an attempt to drop", func() bool { mu.Lock(); defer mu.Unlock(); return calls > 0 })
	testkit.Eventually(t, "a line in the log", func() bool {
		return strings.Contains(f.logged.String(), "the journal could not free the space of settled messages; trying again every second")
	})
	f.wantLogged("not now")
	mu.Lock()
	refuse = nil
	mu.Unlock()
	testkit.Eventually(t, "the old ids to be dropped", func() bool {
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
	testkit.Eventually(t, "the segments to be dropped", func() bool { return j.Stats().Dropped == 2 })

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
