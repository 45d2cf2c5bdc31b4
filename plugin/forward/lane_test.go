package forward

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"unsafe"

	"mosquitto-bouncer/plugin/testkit"
)

func TestLaneIsAFIFO(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	l := &lane{}
	var model []uint64
	next := uint64(1)
	for phase := range 200 {
		for range rnd.IntN(5000) {
			if rnd.IntN(10) < 3+phase%5 {
				l.push(next, 100)
				model = append(model, next)
				next++
			} else if len(model) > 0 {
				if pos := l.pop(); pos != model[0] {
					t.Fatalf("popped %d, want %d", pos, model[0])
				}
				model = model[1:]
			}
			if int(l.n) != len(model) {
				t.Fatalf("%d positions, want %d", l.n, len(model))
			}
		}
		for phase%20 == 19 && l.n > 0 {
			if pos := l.pop(); pos != model[0] {
				t.Fatalf("popped %d, want %d", pos, model[0])
			}
			model = model[1:]
		}
	}
	if next < 100000 {
		t.Errorf("%d pushes only", next)
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestIndexMemory(t *testing.T) {
	const limit = 64 // bytes a message
	if size := unsafe.Sizeof(lane{}); size > 64 {
		t.Errorf("a lane is %d bytes", size)
	}
	for _, test := range []struct{ messages, devices, limit int }{
		{messages: 1_000_000, devices: 10_000, limit: limit},
		{messages: 1_000_000, devices: 1, limit: limit},
		{messages: 1_000_000, devices: 250_000, limit: limit},
		{messages: 200_000, devices: 200_000, limit: 2 * limit}, // of which the larger part is the device's
	} {
		ids := make([]string, test.devices)
		for d := range ids {
			ids[d] = fmt.Sprintf("sensor_%06d", d)
		}
		cfg := with(nil)
		cfg.Suspended = []string{""} // nothing is sent
		store := newMemory(t)
		before := heapInUse()
		f, err := New(cfg, store, nil, (&testkit.Log{}).Logger())
		if err != nil {
			t.Fatal(err)
		}
		for n := range test.messages {
			f.Restore(ids[n%test.devices], uint64(n)<<8, 300)
		}
		f.Start(Counts{})
		each := float64(heapInUse()-before) / float64(test.messages)
		t.Logf("%d messages of %d devices: %.1f bytes each", test.messages, test.devices, each)
		if each > float64(test.limit) || each < 8 {
			t.Errorf("%d messages of %d devices: %.1f bytes each, want 8 to %d", test.messages, test.devices, each, test.limit)
		}
		err = f.Close(t.Context())
		if want := fmt.Sprintf("%d messages were not delivered: %v", test.messages, errSuspended); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		<-f.exited
		runtime.KeepAlive(ids)
	}
}
