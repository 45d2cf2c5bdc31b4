package replay

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
)

// world drives a Set and the obvious slow model of it with the same operations.
type world struct {
	t         *testing.T
	set       *Set
	now       int64
	tolerance int64
	devices   uint32
	ids       uint64
	serial    uint64

	// What the set must know, and what it may know still: what an Expire was
	// allowed to forget becomes overdue, and is deleted when seen to be gone.
	remembered map[modelKey]*modelRecord
	// Every message ever accepted and not taken back.
	accepted map[modelMessage]bool
	// Timestamps of ids seen to be gone.
	first, last int64
	forgot      bool
}

type modelKey struct {
	device uint32
	id     uint64
}

type modelMessage struct {
	modelKey
	timestamp int64
}

type modelRecord struct {
	timestamp int64
	entry     Entry
	overdue   bool
}

func newWorld(t *testing.T, capacity int, devices uint32, ids uint64) *world {
	return &world{
		t: t, set: New(capacity, 10*time.Second), now: epoch, tolerance: 10, devices: devices, ids: ids,
		remembered: map[modelKey]*modelRecord{}, accepted: map[modelMessage]bool{},
	}
}

// look compares what set and model know of a key, and brings the model up to date.
func (w *world) look(k modelKey) (*modelRecord, bool) {
	got, found := w.set.Lookup(k.device, messageID(k.id))
	r := w.remembered[k]
	switch {
	case r == nil && found:
		w.t.Fatalf("found %v, which is not remembered", k)
	case r != nil && found && got != r.entry:
		w.t.Fatalf("found %v with %v, want %v", k, got, r.entry)
	case r != nil && !found && !r.overdue:
		w.t.Fatalf("%v is forgotten, stamped %+d at %+d", k, r.timestamp-epoch, w.now-epoch)
	case r != nil && !found:
		if !w.set.Forgotten(r.timestamp) {
			w.t.Fatalf("%v is gone, and its timestamp is not noted", k)
		}
		if !w.forgot {
			w.first, w.last, w.forgot = r.timestamp, r.timestamp, true
		}
		w.first, w.last = min(w.first, r.timestamp), max(w.last, r.timestamp)
		delete(w.remembered, k)
		r = nil
	}
	return r, found
}

// insert inserts whatever the clock says, as when memory is rebuilt.
func (w *world) insert(k modelKey, timestamp int64) {
	w.serial++
	entry := Entry{Session: uint32(w.serial << 20)}
	binary.BigEndian.PutUint64(entry.Tag[4:], w.serial)
	_, found := w.look(k)
	want, n := Inserted, w.set.Len()
	switch {
	case found:
		want = Duplicate
	case w.set.Forgotten(timestamp):
		want = Stale
	case n == w.set.Capacity():
		want = Full
	}
	if got := w.set.Insert(k.device, messageID(k.id), timestamp, entry); got != want {
		w.t.Fatalf("Insert %v: %v, want %v", k, got, want)
	}
	if want != Inserted {
		return
	}
	message := modelMessage{k, timestamp}
	if w.accepted[message] {
		w.t.Fatalf("%v was accepted twice", message)
	}
	w.accepted[message] = true
	w.remembered[k] = &modelRecord{timestamp: timestamp, entry: entry}
	if w.set.Len() != n+1 {
		w.t.Fatalf("Len %d, want %d", w.set.Len(), n+1)
	}
}

func (w *world) publish(k modelKey, timestamp int64) {
	if timestamp < w.now-w.tolerance || timestamp > w.now+w.tolerance {
		return
	}
	w.insert(k, timestamp)
}

func (w *world) remove(k modelKey) {
	r, found := w.look(k)
	if got := w.set.Remove(k.device, messageID(k.id)); got != found {
		w.t.Fatalf("Remove %v: %v, want %v", k, got, found)
	}
	if found {
		delete(w.remembered, k)
		delete(w.accepted, modelMessage{k, r.timestamp})
	}
}

func (w *world) expire(limit int) {
	n := w.set.Len()
	removed := w.set.Expire(w.now, limit)
	if removed > limit || w.set.Len() != n-removed {
		w.t.Fatalf("Expire(%d) forgot %d, Len %d was %d", limit, removed, w.set.Len(), n)
	}
	for _, r := range w.remembered {
		if r.timestamp+w.tolerance < w.now || r.timestamp > w.now+w.tolerance+turn {
			r.overdue = true
		}
	}
	if limit < all {
		return
	}
	for k, r := range w.remembered {
		if _, found := w.look(k); found && r.timestamp+w.tolerance+1<<slotShift <= w.now {
			w.t.Fatalf("%v stamped %+d is still remembered at %+d", k, r.timestamp-epoch, w.now-epoch)
		}
	}
}

func (w *world) check() {
	found := 0
	for k := range w.remembered {
		if _, ok := w.look(k); ok {
			found++
		}
	}
	if found != w.set.Len() {
		w.t.Fatalf("Len %d, want %d", w.set.Len(), found)
	}
	for _, span := range w.set.Spans() {
		if !w.forgot || span.First < w.first || span.Last > w.last {
			w.t.Fatalf("span %v, but only %d to %d was forgotten", span, w.first, w.last)
		}
	}
}

// step returns a step of the clock in seconds, from the slewing of NTP to a lost
// battery. The long ones are rarer, and slower to test.
func step(op [4]byte) int64 {
	short := [...]int64{1, 2, 4, 9, 10, 11, 20, 60}
	long := [...]int64{3600, turn - 1, turn, turn + 4, 2*turn - 20, 5 * turn, year, epoch / 2}
	if op[1]%8 == 0 {
		return long[op[3]%8]
	}
	return short[op[3]%8]
}

// do performs one operation, which the 4 bytes determine.
func (w *world) do(op [4]byte) {
	n := binary.BigEndian.Uint16(op[2:])
	k := modelKey{uint32(op[1]) % w.devices, (uint64(n)>>5 ^ uint64(op[1])<<3) % w.ids}
	stamp := w.now + int64(n%32)%(2*w.tolerance+1) - w.tolerance
	switch op[0] % 16 {
	default:
		w.publish(k, stamp)
	case 8:
		w.insert(k, stamp+int64(int8(op[1])))
	case 9:
		w.remove(k)
	case 10:
		w.expire(int(n % 5))
	case 11:
		w.expire(all)
	case 12:
		w.now += int64(n % 4)
	case 13:
		w.now += step(op)
	case 14:
		w.now -= step(op)
		if w.now < 0 {
			w.now = epoch
		}
	case 15:
		if op[1] < 200 { // rarer than the rest
			w.now++
			break
		}
		w.tolerance = int64(n % 40)
		w.set.SetTolerance(time.Duration(w.tolerance) * time.Second)
	}
}

func TestModel(t *testing.T) {
	for _, c := range []struct {
		name       string
		capacity   int
		devices    uint32
		ids        uint64
		runs, each int
	}{
		{"few ids", 10, 2, 4, 50, 2000},
		{"some ids", 40, 4, 16, 20, 5000},
		{"many ids", 3000, 100, 1000, 2, 60_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(c.runs) {
				random := rand.New(rand.NewPCG(seed, 1))
				w := newWorld(t, c.capacity, c.devices, c.ids)
				for i := range c.each {
					var op [4]byte
					binary.BigEndian.PutUint32(op[:], random.Uint32())
					if c.devices >= 100 && op[0]%16 > 9 && random.IntN(50) != 0 {
						op[0] = 0 // a step of the clock is rarer, so that the set fills
					}
					w.do(op)
					if i%997 == 0 {
						w.check()
					}
				}
				w.check()
				if len(w.accepted) < c.each/100 {
					t.Fatalf("only %d messages accepted: the test exercises little", len(w.accepted))
				}
			}
		})
	}
}

func FuzzSet(f *testing.F) {
	random := rand.NewChaCha8([32]byte{})
	for _, size := range []int{4, 40, 400} {
		ops := make([]byte, size)
		random.Read(ops)
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 1<<12 {
			return
		}
		w := newWorld(t, 10, 3, 8)
		for ; len(ops) >= 4; ops = ops[4:] {
			w.do([4]byte(ops))
		}
		w.check()
		w.expire(all)
		w.check()
	})
}
