package replay

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"unsafe"
)

// Blocks of memory fill Go's size class of 32 KiB, and hold no pointers, so that
// the garbage collector neither scans them nor wastes on them.
const (
	slabRecords  = 32 << 10 / 52
	chunkBuckets = 32 << 10 / 8
)

// record is one remembered id: 52 bytes. Indices count from 1; 0 is none.
type record struct {
	key        key
	chain      uint32 // the next record of the bucket, or of the free list
	timestamp  uint32 // unix seconds
	next, prev uint32 // neighbours in the wheel's slot
	session    uint32
	tag        [12]byte
}

// key is the device's serial, little endian, and the message id.
type key [20]byte

func makeKey(device uint32, id [16]byte) (k key) {
	binary.LittleEndian.PutUint32(k[:4], device)
	copy(k[4:], id[:])
	return k
}

// bucket is the head of a chain of records. It has the hash of the first one, and
// whether that is the only one, so that most searches for an id that is not there,
// and most splits, touch no record: each would be a miss of the processor's caches.
type bucket struct {
	first uint32 // index, and more
	hash  uint32 // of the first record's key
}

// more is set in bucket.first if the chain has a second record.
const more = 1 << 31

// table is a linear hash table (Litwin, 1980) of records: it grows by one bucket
// at a time, so that no insertion pays for the whole, and has as many as records.
type table struct {
	seed    maphash.Seed // random: devices choose message ids, and could choose colliding ones
	slabs   []*[slabRecords]record
	chunks  []*[chunkBuckets]bucket
	buckets uint32
	used    uint32 // records that were ever in use
	free    uint32 // list of those that no longer are

	// What find looked for last and did not find, with its bucket and hash, so that the insertion that follows a lookup
	// does not search again; nil: the table has changed since.
	missed     *bucket
	missedKey  key
	missedHash uint32
}

func newTable(capacity int) table {
	t := table{
		seed:    maphash.MakeSeed(),
		slabs:   make([]*[slabRecords]record, capacity/slabRecords+1),
		chunks:  make([]*[chunkBuckets]bucket, capacity/chunkBuckets+1),
		buckets: 1,
	}
	t.chunks[0] = new([chunkBuckets]bucket)
	return t
}

// at returns record i, whose slab exists. Written as an index, it would have the compiler read the slab's first byte,
// for the case that there is no slab: one more miss of the caches.
func (t *table) at(i uint32) *record {
	slab := unsafe.Pointer(t.slabs[i/slabRecords])
	return (*record)(unsafe.Add(slab, uintptr(i%slabRecords)*unsafe.Sizeof(record{})))
}

// bucket returns bucket n, whose chunk exists.
func (t *table) bucket(n uint32) *bucket {
	chunk := unsafe.Pointer(t.chunks[n/chunkBuckets])
	return (*bucket)(unsafe.Add(chunk, uintptr(n%chunkBuckets)*unsafe.Sizeof(bucket{})))
}

func (t *table) hash(k *key) uint32 { return uint32(maphash.Bytes(t.seed, k[:])) }

// bucketOf returns the bucket to which a key with this hash belongs.
func (t *table) bucketOf(hash uint32) *bucket {
	half := uint32(1) << (bits.Len32(t.buckets) - 1)
	n := hash & (2*half - 1)
	if n >= t.buckets {
		n -= half
	}
	return t.bucket(n)
}

// find returns the index and the record of k, or 0 and nil.
func (t *table) find(k *key) (uint32, *record) {
	if t.missed != nil && t.missedKey == *k {
		return 0, nil
	}
	hash := t.hash(k)
	b := t.bucketOf(hash)
	i := b.first &^ more
	if i != 0 && b.hash != hash {
		if b.first&more == 0 {
			i = 0
		} else {
			i = t.at(i).chain
		}
	}
	for i != 0 {
		r := t.at(i)
		if r.key == *k {
			return i, r
		}
		i = r.chain
	}
	t.missed, t.missedKey, t.missedHash = b, *k, hash
	return 0, nil
}

// add puts k, which find has just not found, into the table, which holds n
// records, and returns its index and record. The caller sets all other fields.
func (t *table) add(k *key, n int) (uint32, *record) {
	b, hash := t.missed, t.missedHash
	t.missed = nil
	i, slabAdded := t.free, false
	if i != 0 {
		t.free = t.at(i).chain
	} else {
		t.used++
		i = t.used
		if slab := &t.slabs[i/slabRecords]; *slab == nil {
			*slab = new([slabRecords]record)
			slabAdded = true
		}
	}
	r := t.at(i)
	r.key = *k
	b.push(i, r, hash)
	// After a new slab the split waits for the next call: it may need a chunk.
	if !slabAdded && n >= int(t.buckets) {
		t.split()
	}
	return i, r
}

// push puts a record at the head of the chain.
func (b *bucket) push(i uint32, r *record, hash uint32) {
	r.chain = b.first &^ more
	*b = bucket{first: i, hash: hash}
	if r.chain != 0 {
		b.first |= more
	}
}

// drop takes r, which is record i, out of its chain and puts it on the free list.
func (t *table) drop(i uint32, r *record) {
	t.missed = nil
	b := t.bucketOf(t.hash(&r.key))
	if first := b.first &^ more; first == i {
		*b = bucket{first: r.chain}
		if r.chain != 0 {
			next := t.at(r.chain)
			b.hash = t.hash(&next.key)
			if next.chain != 0 {
				b.first |= more
			}
		}
	} else {
		before := t.at(first)
		if before.chain == i && r.chain == 0 {
			b.first = first
		}
		for before.chain != i {
			before = t.at(before.chain)
		}
		before.chain = r.chain
	}
	r.chain = t.free
	t.free = i
}

// split adds a bucket, and moves to it what now belongs there from the one
// bucket whose share it takes.
func (t *table) split() {
	half := uint32(1) << (bits.Len32(t.buckets) - 1)
	if chunk := &t.chunks[t.buckets/chunkBuckets]; *chunk == nil {
		*chunk = new([chunkBuckets]bucket)
	}
	low, high := t.bucket(t.buckets-half), t.bucket(t.buckets)
	t.buckets++
	if low.first&more == 0 {
		if low.first != 0 && low.hash&half != 0 {
			*high, *low = *low, bucket{}
		}
		return
	}
	i := low.first &^ more
	*low = bucket{}
	for i != 0 {
		r := t.at(i)
		next := r.chain
		hash := t.hash(&r.key)
		to := low
		if hash&half != 0 {
			to = high
		}
		to.push(i, r, hash)
		i = next
	}
}
