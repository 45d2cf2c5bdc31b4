package journal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

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
			testkit.Eventually(t, "the next segment, and an fsync", func() bool { return j.next.Load() != nil && j.Stats().Syncs > 0 })
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
			testkit.Eventually(t, "the failure to be noticed", func() bool { return j.Stats().SyncErrors == 1 && j.Stats().Distrusted == 1 })
			testkit.Eventually(t, "a log line", func() bool { return strings.Contains(f.logged.String(), "fsync of the journal failed") })
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

// While no segment can be made durable nothing is accepted, and then it continues.
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
	testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
	fails.set(true)
	want := appendAll(t, j, 0, 1)
	testkit.Eventually(t, "the failure to be noticed", func() bool { return j.Stats().Distrusted == 1 })
	want = append(want, appendAll(t, j, 1, 2)...) // in the segment that is ready
	testkit.Eventually(t, "the second failure to be noticed", func() bool { return j.Stats().Err != nil })
	if _, err := j.Append(message(2)); !errors.Is(err, broken) || !errors.Is(j.Stats().Err, broken) {
		t.Errorf("%v, %v", err, j.Stats().Err)
	}
	testkit.Eventually(t, "a log line", func() bool {
		return strings.Contains(f.logged.String(), "the journal's next segment could not be made; trying again every second")
	})
	fails.set(false)
	testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
	want = append(want, appendAll(t, j, 2, 4)...)
	if st := j.Stats(); st.Err != nil || st.Distrusted != 2 {
		t.Errorf("stats %+v", st)
	}
	testkit.Eventually(t, "a log line", func() bool { return strings.Contains(f.logged.String(), "the journal's next segment is made") })
	f.close(j)
	j, all := f.open()
	wantRecovered(t, all, want)

	// Nothing waits to be synced when the disk fails again: a failure noticed before the append would refuse it.
	testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
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
	testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
	for _, r := range appendAll(t, j, 0, 200) {
		j.Done(r.pos, Dead)
	}
	f.advance(time.Hour)
	testkit.Eventually(t, "a drop after the panic", func() bool { return j.Stats().Dropped > 0 && j.Stats().Panics == 1 })
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
