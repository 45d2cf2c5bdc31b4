package journal

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"

	"golang.org/x/sys/unix"
)

// feed appends n messages of a device, each settled at once unless keep says otherwise, and returns the positions of
// those that were kept. It waits for the next segment whenever that is needed, as the broker's thread need not.
func feed(t *testing.T, j *Journal, device string, from, n int, payload int, keep func(i int) bool) []recovered {
	t.Helper()
	var kept []recovered
	for i := from; i < from+n; i++ {
		a := message(i)
		a.Device, a.Client, a.TopicHash, a.QoS, a.Retain = device, 1, [8]byte{1}, 1, false
		a.Payload = []byte(strings.Repeat("p", payload))
		if j.next.Load() == nil {
			testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
		}
		pos, err := j.Append(a)
		if err != nil {
			t.Fatal(err)
		}
		if keep != nil && keep(i) {
			kept = append(kept, recovered{pos, clone(a), Pending})
			continue
		}
		j.Done(pos, Delivered)
	}
	return kept
}

// What is settled takes 40 bytes and a little, and what waits takes what it is, wherever among the others it was.
func TestJournalHoldsTheBacklogAndIDs(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = 256 << 10
	j, _ := f.open()
	const n, payload = 5000, 1024
	kept := feed(t, j, "sensor_001", 0, n, payload, func(i int) bool { return i%500 == 7 }) // 10 that wait
	// Besides the ids, what waits, and the headers of files there is the segment that is being written.
	most := int64(n*45+len(kept)*(payload+300)) + f.SegmentBytes + 200<<10
	testkit.Eventually(t, "the settled messages to be collected", func() bool { return j.Stats().Bytes <= most })
	onDisk := int64(0)
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != reserveName {
			onDisk += info.Size()
		}
	}
	if most := j.Stats().Bytes + 64<<10; onDisk > most {
		t.Errorf("%d bytes in files, want at most %d", onDisk, most)
	}
	want := int64(n*idSize + len(kept)*(payload+300))
	testkit.Eventually(t, "the device to be charged for that", func() bool { got := j.DeviceBytes("sensor_001"); return got > 0 && got < want*3/2 })
	for _, r := range kept {
		var a Accepted
		if _, err := j.Read(r.pos, &a, nil); err != nil || a.MessageID != r.message.MessageID || string(a.Payload) != string(r.message.Payload) {
			t.Fatalf("read %v: %+v, %v", r.pos, a, err)
		}
	}
	before := j.DeviceBytes("sensor_001")
	f.close(j)
	j, all := f.open()
	ids, waiting := 0, 0
	for _, r := range all {
		if r.outcome == Pending {
			if w := kept[waiting]; r.pos != w.pos || !same(r, w) {
				t.Fatalf("recovered %+v, want %+v", r, w)
			}
			waiting++
			continue
		}
		ids++
	}
	if ids != n-len(kept) || waiting != len(kept) {
		t.Errorf("%d ids and %d messages, want %d and %d", ids, waiting, n-len(kept), len(kept))
	}
	if after := j.DeviceBytes("sensor_001"); after < before*9/10 || after > before*11/10 {
		t.Errorf("the device is charged %d bytes after a restart, %d before", after, before)
	}
	// All that is left is settled, and gets old.
	for _, r := range kept {
		j.Done(r.pos, Dead)
	}
	f.advance(time.Hour)
	testkit.Eventually(t, "everything to be gone", func() bool { return j.DeviceBytes("sensor_001") < 2*f.SegmentBytes && len(j.segmentsNow()) <= 4 })
	if st := j.Stats(); st.Accepted != n || st.Dead != uint64(len(kept)) || st.Pending != 0 {
		t.Errorf("stats %+v", st)
	}
}

// What was moved because it waited, and is settled then, takes no room either, even next to ids that are still needed.
func TestSettledAfterItWasMoved(t *testing.T) {
	f := newFixture(t)
	f.MaxBytes, f.SegmentBytes = 4<<20, 64<<10
	j, _ := f.open()
	const n, payload = 2000, 1024
	kept := feed(t, j, "sensor_001", 0, n, payload, func(i int) bool { return i%5 < 2 })
	testkit.Eventually(t, "the others to be collected", func() bool { return j.Stats().Bytes < n*2/5*(payload+300)+n*45+400<<10 })
	for _, r := range kept {
		j.Done(r.pos, Delivered)
	}
	most := int64(n*45 + 400<<10)
	testkit.Eventually(t, "what was moved to be collected", func() bool { return j.Stats().Bytes < most })
	testkit.Eventually(t, "the device to be charged for ids", func() bool { return j.DeviceBytes("sensor_001") < n*45 })
	f.close(j)
	_, all := f.open()
	ids := make(map[[16]byte]bool)
	for _, r := range all {
		if r.outcome == Pending {
			t.Errorf("%v waits", r.pos)
		}
		ids[r.message.MessageID] = true
	}
	if len(ids) != n || len(all) != n {
		t.Errorf("%d ids of %d messages, given %d times", len(ids), n, len(all))
	}
}

// Messages of half the journal's size: one that is settled does not keep the next one out.
func TestLargeMessagesInTurn(t *testing.T) {
	f := newFixture(t)
	f.MaxBytes, f.DeviceBytes = 1<<20, 800<<10
	j, _ := f.open()
	for i := range 4 {
		a := message(i)
		a.Device, a.Payload = "camera", make([]byte, 600<<10)
		var pos Position
		testkit.Eventually(t, "room", func() (stored bool) {
			var err error
			if pos, err = j.Append(a); err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrShare) {
				t.Fatal(err)
			}
			return err == nil
		})
		j.Done(pos, Delivered)
	}
}

// Only a device that has used up its share is refused, over restarts too; the log names it.
func TestDeviceShare(t *testing.T) {
	f := newFixture(t)
	f.MaxBytes, f.DeviceBytes, f.SegmentBytes = 4<<20, 1<<20, 64<<10
	j, _ := f.open()
	fill := func() (n int) {
		for ; ; n++ {
			a := message(n)
			a.Device, a.Payload = "greedy", make([]byte, 1000)
			if _, err := j.Append(a); err != nil {
				if !errors.Is(err, ErrShare) || errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	if n := fill(); n < 800 || n > 1000 {
		t.Errorf("%d messages of 1 KiB within a share of 1 MiB", n)
	}
	other := func() {
		t.Helper()
		if pos, err := j.Append(message(1)); err != nil {
			t.Errorf("another device: %v", err)
		} else {
			j.Done(pos, Delivered)
		}
		if st := j.Stats(); st.Err != nil || st.OverShare == 0 {
			t.Errorf("stats %+v", st)
		}
	}
	other()
	testkit.Eventually(t, "the log to name it", func() bool { return strings.Contains(f.logged.String(), "device=greedy") })
	f.close(j)
	j, all := f.open()
	if n := fill(); n != 0 {
		t.Errorf("%d messages more after a restart", n)
	}
	other()
	if l := j.Largest(2); len(l) != 2 || l[0].Device != "greedy" || l[0].Bytes < 900<<10 || l[1].Bytes > 10<<10 {
		t.Errorf("the largest are %+v", l)
	}
	for _, r := range all {
		if r.outcome == Pending && r.message.Device == "greedy" {
			j.Done(r.pos, Delivered)
		}
	}
	testkit.Eventually(t, "room for it", func() bool { return j.DeviceBytes("greedy") < 60<<10 })
	if n := fill(); n < 700 {
		t.Errorf("%d messages when there was room again", n)
	}
}

// Whatever is done to the files under the journal, nothing is taken that would be gone.
func TestFilesAreAway(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(f *fixture) error
		back  func(f *fixture) error // nil: it takes a restart
		names string
	}{
		"parent removed": {func(f *fixture) error { return os.RemoveAll(f.parent()) }, nil, "was removed or renamed"},
		"removed":        {func(f *fixture) error { return os.RemoveAll(f.Dir) }, nil, "was removed or renamed"},
		"renamed": {func(f *fixture) error { return os.Rename(f.Dir, f.Dir+".old") },
			func(f *fixture) error { return os.Rename(f.Dir+".old", f.Dir) }, "was removed or renamed"},
		"replaced": {func(f *fixture) error {
			return errors.Join(os.Rename(f.Dir, f.Dir+".old"), os.Mkdir(f.Dir, 0o700))
		}, func(f *fixture) error { return errors.Join(os.Remove(f.Dir), os.Rename(f.Dir+".old", f.Dir)) }, "is another directory now"},
		"files removed": {func(f *fixture) error {
			entries, err := os.ReadDir(f.Dir)
			for _, e := range entries {
				err = errors.Join(err, os.Remove(f.path(e.Name())))
			}
			return err
		}, nil, "lock was removed"},
		"log unlinked": {func(f *fixture) error { return os.Remove(f.path(logName(1))) }, nil, "00000001.log was removed"},
		"log replaced": {func(f *fixture) error {
			return errors.Join(os.Remove(f.path(logName(1))), os.WriteFile(f.path(logName(1)), nil, 0o600))
		}, nil, "00000001.log was replaced"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			f := newFixture(t)
			f.Dir = f.parent() + "/state/journal"
			if err := os.Mkdir(f.parent(), 0o700); err != nil {
				t.Fatal(err)
			}
			j, _ := f.open()
			all := appendAll(t, j, 0, 3)
			testkit.Eventually(t, "the journal to be at rest", func() bool {
				_, err := os.Stat(f.path(reserveName))
				return err == nil && j.next.Load() != nil
			})
			began := time.Now()
			if err := c.do(f); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the journal to notice", func() bool { return j.Stats().Err != nil && strings.Contains(j.Stats().Err.Error(), c.names) })
			if took := time.Since(began); took > time.Second {
				t.Logf("noticed after %v", took)
			}
			if _, err := j.Append(message(3)); err == nil || !strings.Contains(err.Error(), c.names) {
				t.Errorf("append: %v, want %q in it", err, c.names)
			}
			f.wantLogged("the journal cannot keep messages; they are refused as overloaded")
			// Nothing is written where the journal was.
			j.Done(all[0].pos, Delivered)
			if c.back == nil {
				return
			}
			var a Accepted
			if _, err := j.Read(all[2].pos, &a, nil); errors.Is(err, ErrNotFound) {
				t.Errorf("a message counts as lost while its file is away: %v", err)
			}
			if err := c.back(f); err != nil { // os.Remove fails if something was
				t.Fatal(err)
			}
			testkit.Eventually(t, "it to go on", func() bool { return j.Stats().Err == nil })
			all = append(all, appendAll(t, j, 3, 5)...)
			f.close(j)
			all[0].outcome = Delivered
			_, got := f.open()
			wantRecovered(t, got, all)
		})
	}
}

func (f *fixture) parent() string { return strings.TrimSuffix(f.Dir, "/journal") }

// A file system that is remounted read-only, or unmounted, beneath the journal.
func TestFileSystemIsAway(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(dir string) error
		back  func(dir string) error
		names string
	}{
		"read-only": {
			func(dir string) error {
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
					err := unix.Mount(dir, dir, "", unix.MS_BIND, "")
					if err == nil {
						err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
					}
					if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
						return err
					}
					// The journal has opened a file in between, for longer than this loop would wait: another mount has none.
					if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
						return err
					}
				}
			},
			func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
			"read-only file system",
		},
		"unmounted": {func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }, nil, "its file system was unmounted"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			mountTmpfs(t, f, "size=8m")
			j, _ := f.open()
			appendAll(t, j, 0, 3)
			if err := c.do(f.Dir); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the journal to notice", func() bool { return j.Stats().Err != nil })
			if _, err := j.Append(message(3)); err == nil || !strings.Contains(err.Error(), c.names) {
				t.Errorf("append: %v, want %q in it", err, c.names)
			}
			if c.back == nil {
				f.close(j)
				if err := unix.Mount("tmpfs", f.Dir, "tmpfs", 0, "size=8m"); err != nil { // for mountTmpfs to unmount
					t.Fatal(err)
				}
				return
			}
			if err := c.back(f.Dir); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "it to go on", func() bool { return j.Stats().Err == nil })
			appendAll(t, j, 3, 5)
			f.close(j)
		})
	}
}

// Two collections under one position: what waits is found wherever it was moved to, and is given in its order.
func TestMovedTwice(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes, f.Keep = 32<<10, time.Second
	j, _ := f.open()
	var kept []recovered
	for round := range 8 {
		kept = append(kept, feed(t, j, fmt.Sprintf("d%d", round%3), 1000*round, 100, 400, func(i int) bool { return i%40 == 3 })...)
		f.advance(10 * time.Minute)
		testkit.Eventually(t, "collection", func() bool { return len(j.segmentsNow()) <= 7 })
		for i, r := range kept {
			var a Accepted
			if _, err := j.Read(r.pos, &a, nil); err != nil || a.MessageID != r.message.MessageID {
				t.Fatalf("round %d: %v: %v, %v", round, r.pos, a.MessageID, err)
			}
			if i%5 == 4 && round%3 == 2 {
				j.Done(r.pos, Delivered)
			}
		}
		if round%3 == 2 {
			kept = deleteEvery(kept, 5)
		}
		if round%2 == 1 {
			f.close(j)
			var all []recovered
			j, all = f.open()
			var waiting []recovered
			for _, r := range all {
				if r.outcome == Pending {
					waiting = append(waiting, r)
				}
			}
			wantRecovered(t, waiting, kept)
		}
	}
	if st := j.Stats(); st.Accepted != 800 || int(st.Pending) != len(kept) || st.Damaged+st.Missing+st.TornBytes != 0 {
		t.Errorf("stats %+v, %d wait", st, len(kept))
	}
}

func deleteEvery(all []recovered, n int) (left []recovered) {
	for i, r := range all {
		if i%n != n-1 {
			left = append(left, r)
		}
	}
	return left
}
