package replay

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
)

// Blocks of memory fill Go's size class of 32 KiB, and hold no pointers, so that
// the garbage collector neither scans them nor wastes on them.
const (
	slabRecords = 32 << 10 / 60
	chunkHeads  = 32 << 10 / 4
)

// record is one remembered id: 60 bytes. Indices count from 1; 0 is none.
type record struct {
	key        key
	chain      uint32 // the next record of the bucket, or of the free list
	timestamp  uint32 // unix seconds
	next, prev uint32 // neighbours in the wheel's slot
	session    [2]uint32
	tag        [16]byte
}

// key is the device's serial, little endian, and the message id.
type key [20]byte

func makeKey(device uint32, id [16]byte) (k key) {
	binary.LittleEndian.PutUint32(k[:4], device)
	copy(k[4:], id[:])
	return k
}

// table is a linear hash table (Litwin, 1980) of records: it grows by one bucket
// at a time, so that no insertion pays for the whole. Three buckets to four
// records keep the chain that a search walks at 1.5 records or fewer on average.
type table struct {
	seed    maphash.Seed // random: devices choose message ids, and could choose colliding ones
	slabs   []*[slabRecords]record
	chunks  []*[chunkHeads]uint32
	buckets uint32
	used    uint32 // records that were ever in use
	free    uint32 // list of those that no longer are

	// What find looked for last and did not find, with its result, so that the insertion that follows a lookup does
	// not search again; nil: the table has changed since.
	missed    *uint32
	missedKey key
}

func newTable(capacity int) table {
	t := table{
		seed:    maphash.MakeSeed(),
		slabs:   make([]*[slabRecords]record, capacity/slabRecords+1),
		chunks:  make([]*[chunkHeads]uint32, capacity/chunkHeads+1),
		buckets: 1,
	}
	t.chunks[0] = new([chunkHeads]uint32)
	return t
}

func (t *table) at(i uint32) *record { return &t.slabs[i/slabRecords][i%slabRecords] }

func (t *table) head(bucket uint32) *uint32 {
	return &t.chunks[bucket/chunkHeads][bucket%chunkHeads]
}

// bucket returns the head of the chain that k belongs to.
func (t *table) bucket(k *key) *uint32 {
	half := uint32(1) << (bits.Len32(t.buckets) - 1)
	b := uint32(maphash.Bytes(t.seed, k[:])) & (2*half - 1)
	if b >= t.buckets {
		b -= half
	}
	return t.head(b)
}

// find returns the record of k and the link that leads to it, or a nil record
// and the link at the end of its chain.
func (t *table) find(k *key) (*uint32, *record) {
	if t.missed != nil && t.missedKey == *k {
		return t.missed, nil
	}
	link := t.bucket(k)
	for *link != 0 {
		r := t.at(*link)
		if r.key == *k {
			return link, r
		}
		link = &r.chain
	}
	t.missed, t.missedKey = link, *k
	return link, nil
}

// add puts k, which find did not find but returned link for, into the table,
// which holds n records, and returns its index and record. The caller sets all
// other fields.
func (t *table) add(link *uint32, k *key, n int) (uint32, *record) {
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
	r.chain = 0
	*link = i
	// After a new slab the split waits for the next call: it may need a chunk.
	if !slabAdded && uint64(n)*3 > uint64(t.buckets)*4 {
		t.split()
	}
	return i, r
}

// drop puts r, which link leads to, on the free list.
func (t *table) drop(link *uint32, r *record) {
	t.missed = nil
	i := *link
	*link = r.chain
	r.chain = t.free
	t.free = i
}

// split adds a bucket, and moves to it what now belongs there from the one
// bucket whose share it takes.
func (t *table) split() {
	half := uint32(1) << (bits.Len32(t.buckets) - 1)
	if chunk := &t.chunks[t.buckets/chunkHeads]; *chunk == nil {
		*chunk = new([chunkHeads]uint32)
	}
	from := t.head(t.buckets - half)
	t.buckets++
	i := *from
	*from = 0
	for i != 0 {
		r := t.at(i)
		head := t.bucket(&r.key)
		i, r.chain, *head = r.chain, *head, i
	}
}
