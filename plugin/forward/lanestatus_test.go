package forward

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/forward/forwardtest"
	"mosquitto-bouncer/plugin/testkit"
)

// What waits is told right wherever it is: in its lane, in flight, in back-off, suspended, or enqueued just now.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		cfg := with(func(m *Message) reply {
			switch m.DeviceID {
			case "hangs":
				<-release
			case "fails":
				return reply{status: 500}
			case "gone":
				return reply{status: 410}
			}
			return reply{status: 200}
		})
		x := start(t, cfg)
		for n, device := range []string{"fails", "hangs", "gone", "hangs", "fails", "fine", "gone", "hangs"} {
			x.enqueue(message(device, n))
		}
		synctest.Wait()
		position := func(n int) uint64 { return forwardtest.FirstPosition + forwardtest.PositionStep*uint64(n) }
		got := x.Slowest(10)
		if len(got) > 0 {
			if got[0].Failures < 1 {
				t.Errorf("%+v", got)
			}
			got[0].Failures = 0
		}
		want := []LaneStatus{
			{Device: "fails", Messages: 2, Oldest: position(0)},
			{Device: "hangs", Messages: 3, Oldest: position(1)},
			{Device: "gone", Messages: 2, Oldest: position(2), Suspended: true},
		}
		if !slices.Equal(got, want) {
			t.Errorf("%+v", got)
		}
		if got := x.Slowest(2); len(got) != 2 || got[0].Device != "fails" || got[1].Device != "hangs" {
			t.Errorf("%+v", got)
		}
		for _, q := range want[1:] {
			if got := x.Lanes(q.Device)[0]; got != q {
				t.Errorf("%+v, want %+v", got, q)
			}
		}
		if got := x.Lanes("fine")[0]; got != (LaneStatus{Device: "fine"}) {
			t.Errorf("%+v", got)
		}
		x.mu.Lock()
		x.halted = true
		x.mu.Unlock()
		x.enqueue(message("fine", 8))
		if got := x.Lanes("fine")[0]; got != (LaneStatus{Device: "fine", Messages: 1, Oldest: position(8), Suspended: true}) {
			t.Errorf("%+v", got)
		}
		x.Resume("")
		close(release)
		synctest.Wait()
		if got := x.Lanes("hangs")[0]; got != (LaneStatus{Device: "hangs"}) {
			t.Errorf("%+v", got)
		}
	})
}

// Whatever batches are cut into, and however often they fail, what Slowest tells is what the Store has.
func TestLanesOfBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(3, 4))
		var x *fixture
		looked := 0
		check := func() {
			if x == nil {
				return
			}
			looked++
			type left struct {
				n      int
				oldest uint64
			}
			want, got := map[string]left{}, map[string]left{}
			x.store.EachPending(func(pos uint64, m *forwardtest.Message) {
				want[m.DeviceID] = left{want[m.DeviceID].n + 1, pos}
			})
			last := uint64(0)
			for _, q := range x.Slowest(100) {
				got[q.Device] = left{q.Messages, q.Oldest}
				if q.Oldest < last {
					t.Fatalf("%s is out of order", q.Device)
				}
				last = q.Oldest
				if one := x.Lanes(q.Device)[0]; one != q {
					t.Fatalf("%+v and %+v", one, q)
				}
			}
			if !maps.Equal(got, want) {
				t.Fatalf("\n got %v\nwant %v", got, want)
			}
		}
		cfg := batches(Config{Batch: 7, Linger: time.Millisecond, Concurrency: 1}, func(ms []Message) reply {
			check()
			switch rnd.IntN(4) {
			case 0:
				return reply{status: 503}
			case 1:
				return reply{status: 422}
			}
			return reply{status: 202}
		})
		f := start(t, cfg)
		f.mu.Lock()
		f.halted = true
		f.mu.Unlock()
		for n := range 300 {
			f.enqueue(message(fmt.Sprint("d", rnd.IntN(20)), n))
		}
		x = f
		check()
		f.Resume("")
		f.drain()
		if looked < 100 || f.parcels != nil {
			t.Errorf("looked %d times; %v left", looked, f.parcels)
		}
	})
}

// BenchmarkSlowest is how long the workers wait for a look at a million lanes.
func BenchmarkSlowest(b *testing.B) {
	cfg := with(nil)
	cfg.Suspended = []string{""}
	f, err := New(cfg, newMemory(b), nil, (&testkit.Log{}).Logger())
	if err != nil {
		b.Fatal(err)
	}
	order := rand.Perm(1_000_000)
	for n, d := range order {
		f.Restore(fmt.Sprintf("sensor_%07d", d), uint64(n+1)<<8, 300)
	}
	f.Start(Counts{})
	for b.Loop() {
		if len(f.Slowest(100)) != 100 {
			b.Fatal("not 100")
		}
	}
	_ = f.Close(b.Context())
	<-f.exited
}
