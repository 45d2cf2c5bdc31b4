package journal

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

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
		testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
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
		testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
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
	testkit.Eventually(t, "a log line", func() bool {
		return strings.Contains(f.logged.String(), "the journal cannot store messages; they are refused")
	})
	for _, pos := range all {
		j.Done(pos, Delivered)
	}
	f.advance(time.Hour)
	testkit.Eventually(t, "room", func() bool { return j.Stats().Err == nil })
	if _, err := j.Append(message(0)); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "a log line", func() bool { return strings.Contains(f.logged.String(), "the journal stores messages again") })
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
	testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
	stalls.set(true)
	var want []recovered
	for i := 0; j.active.number == 1 || j.active.end < 3*minSegmentBytes; i++ {
		want = append(want, appendAll(t, j, i, i+1)...)
	}
	if n := want[len(want)-1].pos.segment(); n != 2 {
		t.Errorf("segment %d", n)
	}
	close(disk)
	testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
	want = append(want, appendAll(t, j, len(want), len(want)+10)...)
	if n := want[len(want)-1].pos.segment(); n != 3 {
		t.Errorf("segment %d", n)
	}
	_, all := f.snapshot().open()
	wantRecovered(t, all, want)
}
