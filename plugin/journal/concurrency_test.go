package journal

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

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
	testkit.Eventually(t, "segments to be dropped", func() bool { return len(j.segmentsNow()) <= 2 })
	st := j.Stats()
	if st.Accepted != messages || st.Delivered != messages || st.Pending != 0 || st.Dropped == 0 || st.Panics != 0 {
		t.Errorf("stats %+v", st)
	}
	testkit.Eventually(t, "the account of bytes to add up", func() bool {
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
