package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

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
			testkit.Eventually(t, "all segments to be dropped but the active, the next and the collector", func() bool { return len(j.segmentsNow()) <= 3 })
			reopen(false)
			st := j.Stats()
			if st.Accepted != accepted || st.Pending != 0 || st.Accepted != st.Delivered+st.Dead {
				t.Errorf("stats %+v, want %d accepted", st, accepted)
			}
		})
	}
}
