package registry

import (
	"hash/maphash"
	"iter"
	"slices"
)

const (
	shardBits  = 12
	shardCount = 1 << shardBits
)

// A snapshot is the set of devices at one moment: a hash table in shards, of which the next snapshot shares those that
// did not change. Immutable once published; safe for concurrent use. Go's maps would need some 40 bytes more a device,
// and a second hash to find the shard.
type snapshot struct {
	seed    maphash.Seed
	shards  [shardCount]shard // by the hash's highest bits
	len     int
	serials uint32 // greater than every device's serial
}

// A shard is an open-addressed table, probed linearly from the hash's lowest bits on.
type shard struct {
	slots []*Device // none, or a power of two of which at most three quarters are used
	used  int
}

func newSnapshot() *snapshot { return &snapshot{seed: maphash.MakeSeed()} }

func (s *snapshot) lookup(id []byte) *Device {
	hash := maphash.Bytes(s.seed, id)
	sh := &s.shards[hash>>(64-shardBits)]
	if sh.used == 0 {
		return nil
	}
	mask := uint64(len(sh.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		if d := sh.slots[i]; d == nil || d.ID == string(id) {
			return d
		}
	}
}

// all yields every device, in no order.
func (s *snapshot) all() iter.Seq[*Device] {
	return func(yield func(*Device) bool) {
		for i := range s.shards {
			for _, d := range s.shards[i].slots {
				if d != nil && !yield(d) {
					return
				}
			}
		}
	}
}

// with returns the snapshot that has the devices of put, each instead of the one with its id, and not those of drop.
// It copies the shards it changes and no others.
func (s *snapshot) with(put, drop []*Device) *snapshot {
	next := *s
	var own [shardCount]bool // shards that belong only to next
	shardOf := func(hash uint64) *shard {
		i := hash >> (64 - shardBits)
		if !own[i] {
			own[i] = true
			next.shards[i].slots = slices.Clone(next.shards[i].slots)
		}
		return &next.shards[i]
	}
	for _, d := range drop {
		hash := next.hash(d)
		if shardOf(hash).remove(hash, d.ID, next.hash) {
			next.len--
		}
	}
	for _, d := range put {
		hash := next.hash(d)
		if shardOf(hash).put(hash, d, next.hash) {
			next.len++
		}
		next.serials = max(next.serials, d.Serial+1)
	}
	return &next
}

func (s *snapshot) hash(d *Device) uint64 { return maphash.String(s.seed, d.ID) }

// find returns the slot of the device with this id, or the empty one that ends the search for it.
func (sh *shard) find(hash uint64, id string) uint64 {
	mask := uint64(len(sh.slots) - 1)
	i := hash & mask
	for sh.slots[i] != nil && sh.slots[i].ID != id {
		i = (i + 1) & mask
	}
	return i
}

// put reports whether the device's id is new.
func (sh *shard) put(hash uint64, d *Device, hashOf func(*Device) uint64) bool {
	if sh.used > 0 {
		if i := sh.find(hash, d.ID); sh.slots[i] != nil {
			sh.slots[i] = d
			return false
		}
	}
	if 4*(sh.used+1) > 3*len(sh.slots) {
		old := sh.slots
		sh.slots = make([]*Device, max(4, 2*len(old)))
		for _, o := range old {
			if o != nil {
				sh.slots[sh.find(hashOf(o), o.ID)] = o
			}
		}
	}
	sh.slots[sh.find(hash, d.ID)] = d
	sh.used++
	return true
}

// remove reports whether there was such a device. It moves later devices up, so that no search ends too early (Knuth,
// The Art of Computer Programming, volume 3, 6.4, algorithm R).
func (sh *shard) remove(hash uint64, id string, hashOf func(*Device) uint64) bool {
	if sh.used == 0 {
		return false
	}
	mask := uint64(len(sh.slots) - 1)
	gap := sh.find(hash, id)
	if sh.slots[gap] == nil {
		return false
	}
	sh.used--
	for i := (gap + 1) & mask; sh.slots[i] != nil; i = (i + 1) & mask {
		home := hashOf(sh.slots[i]) & mask
		if (i-home)&mask >= (i-gap)&mask { // found from its home by way of the gap
			sh.slots[gap] = sh.slots[i]
			gap = i
		}
	}
	sh.slots[gap] = nil
	return true
}
