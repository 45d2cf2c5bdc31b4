package deadletter

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mosquitto-bouncer/plugin/smalldisk"
)

func openWithin(t *testing.T, path string, l Limits) *Store {
	t.Helper()
	s, err := Open(path, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func large(device string, n, size int) Letter {
	l := letter(n)
	l.Device, l.Payload = device, bytes.Repeat([]byte("x"), size)
	return l
}

// fill adds letters of a device, many at once, until one is refused, and returns how many there was room for and why.
func fill(t *testing.T, s *Store, device string, from, size int) (n int, why error) {
	t.Helper()
	for round := 0; why == nil && round < 1000; round++ {
		results := make(chan error)
		for i := range 64 {
			go func() { results <- s.Add(t.Context(), large(device, from+64*round+i, size)) }()
		}
		for range 64 {
			if err := <-results; err != nil {
				why = err
			} else {
				n++
			}
		}
	}
	return n, why
}

// A device has its share and no more, others have theirs, and all together have what there is; dropped and removed letters
// make room at once.
func TestLimits(t *testing.T) {
	for _, size := range []int{10, 900, 2100, 60000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := newPath(t)
			most := int64(4 << 20)
			if size < 1000 {
				most = 1 << 20
			}
			s := openWithin(t, path, Limits{MaxBytes: most, DeviceShare: 0.25})
			n, err := fill(t, s, "a", 0, size)
			if !errors.Is(err, ErrDeviceFull) || !strings.Contains(err.Error(), "bouncerctl dead") || n < 2 {
				t.Fatalf("%d: %v", n, err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Size() > most/4+256<<10 {
				t.Errorf("%d bytes on the disk of %d, %v", info.Size(), most, err)
			}
			total, from := n, 10000
			for _, device := range []string{"b", "c", "d", "e", "f"} {
				n, err = fill(t, s, device, from, size)
				total, from = total+n, from+10000
			}
			if !errors.Is(err, ErrFull) {
				t.Errorf("%v", err)
			}
			u, err := s.Usage(t.Context())
			if err != nil || !u.Full() && size < 2000 || u.Bytes > most+64<<10 || u.MaxBytes != most || u.Letters != int64(total) {
				t.Errorf("%+v %v, %d letters", u, err, total)
			}
			if with, err := s.HasRoom(t.Context(), []string{"a", "new"}); err != nil || len(with) != 0 && size < 2000 {
				t.Errorf("%v %v", with, err)
			}
			changed(t, 1)(operator(t, path).Drop(t.Context(), Filter{IDs: []int64{1}}))
			if with, err := s.HasRoom(t.Context(), []string{"a"}); err != nil || len(with) != 1 && size > 4096 {
				t.Errorf("after a drop: %v %v", with, err)
			}
			if _, err := operator(t, path).Drop(t.Context(), Filter{Device: "a"}); err != nil {
				t.Fatal(err)
			}
			if err := s.Add(t.Context(), large("a", 99999, size)); err != nil {
				t.Error(err)
			}
		})
	}
}

// The room that SQL counts is the one that Go counts, through every change of a letter.
func TestRoomIsCounted(t *testing.T) {
	s := openStore(t, newPath(t))
	want := map[string]int64{}
	for n := range 40 {
		l := large(fmt.Sprint("d", n%3), n, n*300)
		l.Topic, l.Excerpt, l.Traceparent = strings.Repeat("t", n), strings.Repeat("é", n), strings.Repeat("p", n%7)
		add(t, s, l)
		want[l.Device] += l.room()
	}
	again := large("d0", 0, 5000)
	again.DiedAt = again.DiedAt.Add(1)
	before := large("d0", 0, 0)
	before.Topic, before.Excerpt, before.Traceparent = "", "", ""
	add(t, s, again)
	want["d0"] += again.room() - before.room()
	list, err := s.Largest(t.Context(), 10)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v %v", list, err)
	}
	for _, d := range list {
		if d.Bytes != want[d.Device] {
			t.Errorf("%+v, want %d", d, want[d.Device])
		}
	}
	if _, err := s.Drop(t.Context(), Filter{}); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Largest(t.Context(), 10); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
}

// With DropOldest the oldest letters go, the device's own, and none that is to be requeued.
func TestDropOldest(t *testing.T) {
	s := openWithin(t, newPath(t), Limits{MaxBytes: 4 << 20, DeviceShare: 0.1, DropOldest: true})
	add(t, s, large("b", 1, 4000), large("a", 2, 4000))
	changed(t, 1)(s.Requeue(t.Context(), Filter{Device: "a"}, letter(1).DiedAt))
	for n := range 300 {
		add(t, s, large("a", n+10, 4000))
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Dropped == 0 || u.Dropped+uint64(u.Letters) != 302 {
		t.Errorf("%+v %v", u, err)
	}
	if got := list(t, s, Filter{Device: "b"}, 0); len(got) != 1 {
		t.Errorf("the other device has %d letters", len(got))
	}
	own := list(t, s, Filter{Device: "a"}, 0)
	if own[0].MessageID != letter(309).MessageID || own[len(own)-1].MessageID != letter(2).MessageID {
		t.Errorf("%s to %s", own[0].MessageID, own[len(own)-1].MessageID)
	}
}

// A letter that is larger than the share is kept if it is the only one: else it would never be.
func TestOneLargeLetter(t *testing.T) {
	s := openWithin(t, newPath(t), Limits{MaxBytes: 4 << 20, DeviceShare: 0.01})
	add(t, s, large("a", 1, 1<<20))
	if err := s.Add(t.Context(), large("a", 2, 10)); !errors.Is(err, ErrDeviceFull) {
		t.Error(err)
	}
	if err := s.Add(t.Context(), large("b", 3, 4<<20)); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
}

// A database of the first version is taken over, its letters counted, and it gives free pages back as a new one does.
func TestFirstVersion(t *testing.T) {
	path := newPath(t)
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"PRAGMA auto_vacuum = FULL", letters, "PRAGMA user_version = 1"} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	want := int64(0)
	for n := range 100 {
		l := large("a", n, 10000)
		want += l.room()
		if _, err := db.Exec(`INSERT INTO letters (device, message_id, timestamp, accepted_at, died_at, topic, traceparent, bytes,
			reason, status, attempts, deaths, excerpt) VALUES (?, ?, ?, 1, 1, ?, ?, ?, 'refused', 400, 1, 1, ?)`,
			l.Device, l.MessageID, l.Timestamp, l.Topic, l.Traceparent, len(l.Payload), l.Excerpt); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("INSERT INTO payloads VALUES (?, ?)", n+1, l.Payload); err != nil {
			t.Fatal(err)
		}
	}
	_ = db.Close()
	s := openWithin(t, path, Limits{MaxBytes: 2 << 20, DeviceShare: 0.4})
	if got, err := s.Largest(t.Context(), 1); err != nil || len(got) != 1 || got[0] != (DeviceUsage{"a", 100, want}) {
		t.Errorf("%+v %v, want %d", got, err, want)
	}
	if err := s.Add(t.Context(), large("a", 1000, 10)); !errors.Is(err, ErrDeviceFull) {
		t.Error(err)
	}
	changed(t, 100)(s.Drop(t.Context(), Filter{}))
	if info, err := os.Stat(path); err != nil || info.Size() > 100<<10 {
		t.Errorf("%d bytes after everything was dropped", info.Size())
	}
}

// On a file system that is full to the last byte, by others, letters can be dropped, the room comes back, and letters can
// be added again.
func TestDropOnFullDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "size=24m")
	if disk == "" {
		return
	}
	path := filepath.Join(disk, "dead.db")
	s := openWithin(t, path, Limits{MaxBytes: 1 << 30, DeviceShare: 0.1, Leave: func() int64 { return 8 << 20 }})
	if err := s.Reserve(t.Context()); err != nil {
		t.Fatal(err)
	}
	refusals := map[string]int{}
	n := 0
	for device := range 12 { // the disk bounds them, and each device has a share of what it has
		more, err := fill(t, s, fmt.Sprint("d", device), device*10000, 60000)
		switch n += more; {
		case errors.Is(err, ErrDeviceFull):
			refusals["device"]++
		case errors.Is(err, ErrFull):
			refusals["all"]++
		default:
			t.Fatal(err)
		}
	}
	var free syscall.Statfs_t
	if err := syscall.Statfs(disk, &free); err != nil || free.Bavail*4096 < 7<<20 {
		t.Errorf("%d KiB are left to others, %v", free.Bavail*4, err)
	}
	if refusals["device"] < 8 || refusals["all"] < 1 {
		t.Errorf("%v", refusals)
	}
	ballast, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 4096); err == nil; {
		_, err = ballast.Write(chunk)
	}
	if err := s.Add(t.Context(), large("new", 1, 60000)); err == nil {
		t.Error("a letter was stored on a full disk")
	}
	o := operator(t, path)
	changed(t, 3)(o.Drop(t.Context(), Filter{IDs: []int64{1, 2, 3}}))
	n += dropOldestOnFullDisk(t, path)
	for chunk := make([]byte, 4096); err == nil; {
		_, err = ballast.Write(chunk)
	}
	dropped, err := o.Drop(context.WithoutCancel(t.Context()), Filter{})
	if err != nil || dropped != int64(n-3) || o.memory {
		t.Errorf("%d of %d dropped, %v; journal in memory: %v", dropped, n-3, err, o.memory)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 200<<10 {
		t.Errorf("%d bytes are left of it, %v", info.Size(), err)
	}
	if err := s.Add(t.Context(), large("new", 1, 60000)); err != nil {
		t.Error(err)
	}
}

// dropOldestOnFullDisk adds letters in the room of others', and finds out that no more are dropped than that takes. It
// returns how many letters more there are.
func dropOldestOnFullDisk(t *testing.T, path string) int {
	t.Helper()
	s := openWithin(t, path, Limits{MaxBytes: 1 << 30, DeviceShare: 0.1, DropOldest: true})
	before, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 40 {
		if err := s.Add(t.Context(), large(fmt.Sprint("x", n), 900000+n, 6000)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := s.Usage(t.Context())
	if err != nil || after.Dropped == 0 || after.Dropped > 25 {
		t.Errorf("%+v, then %+v %v", before, after, err)
	}
	s.Reclaim(t.Context())
	return int(after.Letters - before.Letters)
}

// With DropOldest no letter is dropped for one that there will be no room for in any case.
func TestDropOldestForNothing(t *testing.T) {
	s := openWithin(t, newPath(t), Limits{MaxBytes: 2 << 20, DeviceShare: 1, DropOldest: true})
	for n := range 300 {
		add(t, s, large(fmt.Sprint("d", n%3), n, 4000))
	}
	unharmed := func(l Letter) {
		t.Helper()
		if err := s.Add(t.Context(), l); !errors.Is(err, ErrFull) && !errors.Is(err, ErrDeviceFull) {
			t.Error(err)
		}
		if u, err := s.Usage(t.Context()); err != nil || u.Letters != 300 || u.Dropped != 0 {
			t.Errorf("%+v %v", u, err)
		}
	}
	unharmed(large("d0", 1000, 3<<20)) // too large for the database
	unharmed(large("new", 1001, 3<<20))
	for _, device := range []string{"d1", "d2"} { // these are not to be dropped, so there is no room behind d0's either
		changed(t, 100)(s.Requeue(t.Context(), Filter{Device: device}, letter(1).DiedAt))
	}
	unharmed(large("new", 1002, 3<<19))
}

// A device with a large letter that waits is not asked to continue while there is room for small ones alone.
func TestHasRoomForWhatWaits(t *testing.T) {
	path := newPath(t)
	s := openWithin(t, path, Limits{MaxBytes: 4 << 20, DeviceShare: 0.25})
	add(t, s, large("a", 1, 700<<10))
	if err := s.Add(t.Context(), large("a", 2, 600<<10)); !errors.Is(err, ErrDeviceFull) {
		t.Fatal(err)
	}
	if with, err := s.HasRoom(t.Context(), []string{"a", "b"}); err != nil || fmt.Sprint(with) != "[b]" {
		t.Errorf("%v %v", with, err)
	}
	if err := s.Add(t.Context(), large("a", 3, 10)); err != nil { // a smaller one has room
		t.Error(err)
	}
	changed(t, 1)(operator(t, path).Drop(t.Context(), Filter{IDs: []int64{1}}))
	if with, err := s.HasRoom(t.Context(), []string{"a"}); err != nil || fmt.Sprint(with) != "[a]" {
		t.Errorf("%v %v", with, err)
	}
}

// A device may fill its share to the last byte.
func TestShareToTheLastByte(t *testing.T) {
	first, second := large("a", 1, 600), large("a", 2, 600)
	for _, less := range []int64{0, 1} {
		most := int64(4 << 20)
		share := (float64(first.room()+second.room()-less) + 0.5) / float64(most)
		s := openWithin(t, newPath(t), Limits{MaxBytes: most, DeviceShare: share})
		add(t, s, first)
		if err := s.Add(t.Context(), second); (err == nil) != (less == 0) {
			t.Errorf("%d bytes less: %v", less, err)
		}
	}
}
