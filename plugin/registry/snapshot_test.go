package registry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// Snapshots behave like copies of a map, the older ones unchanged.
func TestSnapshotAgainstMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	s, model := newSnapshot(), map[string]*Device{}
	oldSnapshot, oldModel := s, maps.Clone(model)
	for round := range 300 {
		var put, drop []*Device
		touched := map[string]bool{}
		for range random.IntN(400) {
			id := fmt.Sprint(random.IntN(40_000)) // some ten a shard, so that they collide
			if touched[id] {
				continue
			}
			touched[id] = true
			if known := model[id]; known != nil && random.IntN(3) > 0 {
				drop = append(drop, known)
				delete(model, id)
				continue
			}
			d := &Device{ID: id, Serial: uint32(round)}
			put = append(put, d)
			model[id] = d
		}
		s = s.with(put, drop)
		if round%50 == 0 {
			compare(t, oldSnapshot, oldModel)
			compare(t, s, model)
			oldSnapshot, oldModel = s, maps.Clone(model)
		}
	}
	// To the last device and back.
	var every []*Device
	for d := range s.all() {
		every = append(every, d)
	}
	compare(t, s.with(nil, every), nil)
	compare(t, s.with(nil, every).with(every, nil), model)
	compare(t, s, model)
}

// A few slots, full runs and wrapping ones, in every order of removal.
func TestShardAgainstMap(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		homes := map[string]uint64{}
		hashOf := func(d *Device) uint64 { return homes[d.ID] }
		var sh shard
		model := map[string]*Device{}
		for i := range 40 {
			id := fmt.Sprint(random.IntN(12))
			if _, ok := homes[id]; !ok {
				homes[id] = random.Uint64N(16)
			}
			_, had := model[id]
			if random.IntN(2) == 0 {
				d := &Device{ID: id, Serial: uint32(i)}
				if sh.put(homes[id], d, hashOf) == had {
					t.Fatalf("put of %s is new %t", id, had)
				}
				model[id] = d
			} else {
				if sh.remove(homes[id], id, hashOf) != had {
					t.Fatalf("remove of %s found it %t", id, !had)
				}
				delete(model, id)
			}
			if sh.used != len(model) {
				t.Fatalf("%d used, want %d", sh.used, len(model))
			}
			for id, home := range homes {
				var got *Device
				if sh.used > 0 {
					got = sh.slots[sh.find(home, id)]
				}
				if got != model[id] {
					t.Fatalf("%s is %v, want %v", id, got, model[id])
				}
			}
		}
	}
}

func compare(t *testing.T, s *snapshot, model map[string]*Device) {
	t.Helper()
	if s.len != len(model) {
		t.Fatalf("%d devices, want %d", s.len, len(model))
	}
	n := 0
	for d := range s.all() {
		n++
		if model[d.ID] != d {
			t.Fatalf("has %s", d.ID)
		}
	}
	if n != len(model) {
		t.Fatalf("yields %d devices, want %d", n, len(model))
	}
	for i := range 40_000 {
		id := fmt.Sprint(i)
		if got := s.lookup([]byte(id)); got != model[id] {
			t.Fatalf("lookup of %s is %v, want %v", id, got, model[id])
		}
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	path := newPath(t)
	insert(t, pythonDatabase(t, path), "sensor_001", "secret")
	r, _ := openRegistry(t, path)
	known, unknown := []byte("sensor_001"), []byte("a much longer id than the compiler would keep on a stack: 0123456789")
	if n := testing.AllocsPerRun(1000, func() {
		if r.Lookup(known) == nil || r.Lookup(unknown) != nil {
			t.Error("wrong answer")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
