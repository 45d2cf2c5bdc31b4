package journal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// built returns a closed journal of n messages, in one segment, those with an odd number delivered.
func built(t *testing.T, n int) (*fixture, []recovered) {
	f := newFixture(t)
	j, _ := f.open()
	all := appendAll(t, j, 0, n)
	for i := 1; i < n; i += 2 {
		j.Done(all[i].pos, Delivered)
		all[i].outcome = Delivered
	}
	f.close(j)
	return f, all
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A failure of the power: the log ends at any byte of its last two records, with nothing or with zeros or with what the
// disk's blocks held before.
func TestCutAtEveryOffset(t *testing.T) {
	f, all := built(t, 8)
	log := read(t, f.path(logName(1)))
	outcomes := read(t, f.path(outcomesName(1)))
	first := int(all[6].pos.offset())
	old := bytes.Repeat(log[all[0].pos.offset():all[6].pos.offset()], 2)
	for cut := first; cut <= len(log); cut++ {
		// aligned, as the last bytes may be padding that no checksum covers
		whole := 6
		for i := 6; i < 8; i++ {
			size, _ := recordSize(&all[i].message)
			if cut >= int(all[i].pos.offset())+size {
				whole = i + 1
			}
		}
		for name, tail := range map[string][]byte{"": nil, "zeros": make([]byte, len(log)-cut), "old": old} {
			var got []recovered
			seed := headerOf(t, log).salt.seed(1)
			b := append(bytes.Clone(log[:cut]), tail...)
			result := scan(bytes.NewReader(b), int64(len(b)), seed, func(offset uint32, _ int, a *Accepted) {
				got = append(got, recovered{pos: Position(1<<32 | uint64(offset)), message: clone(a)})
			})
			for i := range got {
				got[i].outcome = all[min(i, 7)].outcome
			}
			// Of a record that is complete but for its padding nothing is missing.
			if len(got) != whole && len(got) != whole+1 {
				t.Fatalf("cut at %d, then %s: found %d, want %d; %+v", cut, name, len(got), whole, result)
			}
			wantRecovered(t, got, all[:len(got)])
		}
		if cut%7 != 0 && cut > first+40 && cut < len(log)-40 {
			continue // the rest, with files
		}
		c := newFixture(t)
		if err := os.Mkdir(c.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, c.path(logName(1)), log[:cut])
		write(t, c.path(outcomesName(1)), outcomes)
		j, got := c.open()
		wantRecovered(t, got, all[:whole])
		st := j.Stats()
		torn := uint64(cut) - uint64(len(log))
		if whole < 8 {
			torn = uint64(cut) - uint64(all[whole].pos.offset())
		}
		if st.TornBytes != torn || st.Damaged != 0 {
			t.Fatalf("cut at %d: stats %+v, want %d bytes torn", cut, st, torn)
		}
		if torn > 0 {
			c.wantLogged("ends with an incomplete record")
		}
		more := appendAll(t, j, 100, 102)
		c.close(j)
		j, got = c.open()
		wantRecovered(t, got, append(slices.Clone(all[:whole]), more...))
		if st := j.Stats(); st.TornBytes != 0 {
			t.Fatalf("cut at %d: found torn again: %+v", cut, st)
		}
		c.close(j)
	}
}

func headerOf(t *testing.T, log []byte) header {
	t.Helper()
	h, err := parseHeaderBlock(log)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// The outcomes end at any byte.
func TestCutOutcomes(t *testing.T) {
	f, all := built(t, 8)
	outcomes := read(t, f.path(outcomesName(1)))
	for cut := range outcomes {
		c := f.snapshot()
		write(t, c.path(outcomesName(1)), outcomes[:cut])
		j, got := c.open()
		left := max(0, cut-headerSize) / slotSize
		want := slices.Clone(all)
		for i := range want {
			if i/2 >= left {
				want[i].outcome = Pending
			}
		}
		wantRecovered(t, got, want)
		for i := 1; i < 8; i += 2 { // and it continues behind them
			if want[i].outcome == Pending {
				j.Done(want[i].pos, Delivered)
			}
		}
		c.close(j)
		j, got = c.open()
		wantRecovered(t, got, all)
		if st := j.Stats(); st.DamagedOutcomes != 0 {
			t.Fatalf("cut at %d: %+v", cut, st)
		}
		c.close(j)
	}
}

// Each bit of a record in the middle.
func TestBitFlipCostsOneRecord(t *testing.T) {
	log, seed, offsets := buildLog(9)
	const victim = 4
	size, _ := recordSize(message(victim))
	unpadded := recordHeader + bodyFixed + len(message(victim).Device) + len(message(victim).Topic) +
		len(message(victim).Traceparent) + len(message(victim).Payload)
	for bit := range 8 * size {
		at := int(offsets[victim]) + bit/8
		log[at] ^= 1 << (bit % 8)
		var got []uint32
		result := scan(bytes.NewReader(log), int64(len(log)), seed, func(offset uint32, _ int, a *Accepted) {
			got = append(got, offset)
			if i := slices.Index(offsets, offset); i < 0 || !bytes.Equal(a.Payload, message(i).Payload) {
				t.Fatalf("bit %d: %+v at %d", bit, a, offset)
			}
		})
		log[at] ^= 1 << (bit % 8)
		want, damaged := slices.Delete(slices.Clone(offsets), victim, victim+1), 1
		if bit/8 >= unpadded {
			want, damaged = offsets, 0
		}
		if !slices.Equal(got, want) || result.damaged != damaged || result.torn != 0 ||
			damaged > 0 && result.firstAt != int64(offsets[victim]) {
			t.Fatalf("bit %d: %v, %+v", bit, got, result)
		}
	}
}

// The same with files, for a bit of the header and one of the body; and read while the journal is open.
func TestDamagedRecord(t *testing.T) {
	for _, at := range []uint32{9, 100} {
		f, all := built(t, 9)
		log := read(t, f.path(logName(1)))
		log[all[4].pos.offset()+at] ^= 4
		write(t, f.path(logName(1)), log)
		j, got := f.open()
		wantRecovered(t, got, slices.Delete(slices.Clone(all), 4, 5))
		if st := j.Stats(); st.Damaged != 1 || st.Accepted != 8 || st.TornBytes != 0 {
			t.Errorf("stats %+v", st)
		}
		f.wantLogged("messages in the journal are damaged and lost; the others are not affected")
		var a Accepted
		if _, err := j.Read(all[4].pos, &a, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("read: %v", err)
		}
		// With the others settled the segment goes. The outcome of one that is damaged does no harm.
		for i, r := range got {
			if i == 0 || r.outcome == Pending {
				j.Done(r.pos, Delivered)
			}
		}
		f.advance(time.Hour)
		testkit.Eventually(t, "the segment to be dropped", func() bool { return j.Stats().Dropped == 1 })
		if st := j.Stats(); st.Accepted != 8 || st.Delivered != 8 || st.Pending != 0 {
			t.Errorf("stats %+v", st)
		}
	}
	// The last record, complete but damaged.
	f, all := built(t, 9)
	log := read(t, f.path(logName(1)))
	log[all[8].pos.offset()+100] ^= 1
	write(t, f.path(logName(1)), log)
	j, got := f.open()
	wantRecovered(t, got, all[:8])
	if st := j.Stats(); st.Damaged != 1 || st.TornBytes != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestDamagedOutcome(t *testing.T) {
	f, all := built(t, 9)
	outcomes := read(t, f.path(outcomesName(1)))
	for bit := range 8 * slotSize {
		c := f.snapshot()
		b := bytes.Clone(outcomes)
		b[headerSize+slotSize+bit/8] ^= 1 << (bit % 8)
		write(t, c.path(outcomesName(1)), b)
		j, got := c.open()
		want := slices.Clone(all)
		want[3].outcome = Pending
		wantRecovered(t, got, want)
		if st := j.Stats(); st.DamagedOutcomes != 1 {
			t.Fatalf("stats %+v", st)
		}
		c.wantLogged("outcomes in the journal are damaged; their messages are delivered again")
		c.close(j)
	}
}

// Damage anywhere costs what it touches: what is found is a part of what was written, in order.
func TestRandomDamage(t *testing.T) {
	log, seed, offsets := buildLog(300)
	random := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		b := bytes.Clone(log)
		touched := map[uint32]bool{}
		for range 1 + random.IntN(4) {
			from := logStart + random.IntN(len(b)-logStart)
			to := min(len(b), from+1+random.IntN(3000))
			source := random.IntN(len(b) - 3000)
			for i := from; i < to; i++ {
				switch from % 3 {
				case 0:
					b[i] = byte(random.Uint32())
				case 1:
					b[i] = 0
				case 2: // another part of the log
					b[i] = log[source+i-from]
				}
			}
			for i, o := range offsets {
				end := len(log)
				if i+1 < len(offsets) {
					end = int(offsets[i+1])
				}
				if int(o) < to && end > from {
					touched[o] = true
				}
			}
		}
		found := map[uint32]bool{}
		last := uint32(0)
		scan(bytes.NewReader(b), int64(len(b)), seed, func(offset uint32, _ int, a *Accepted) {
			i := slices.Index(offsets, offset)
			if i < 0 || offset <= last || !bytes.Equal(a.Payload, message(i).Payload) {
				t.Fatalf("found %+v at %d", a, offset)
			}
			last = offset
			found[offset] = true
		})
		for _, o := range offsets {
			if !touched[o] && !found[o] {
				t.Fatalf("the record at %d is lost, which was not damaged", o)
			}
		}
	}
}

// A device puts into its payload what looks like a record at the very place; then the header before it is damaged.
func TestForgedRecord(t *testing.T) {
	log, seed, _ := buildLog(1)
	for _, secret := range []bool{false, true} {
		guess := uint32(0)
		if secret {
			guess = seed // which shows that the place is right, and nothing but the salt protects it
		}
		start := uint32(len(log))
		inner := start + recordHeader + bodyFixed + 16
		forged := appendRecord(nil, &Accepted{Device: "victim", Payload: []byte("{}")}, inner, guess)
		a := &Accepted{Device: strings.Repeat("d", 16), Payload: forged}
		b := appendRecord(bytes.Clone(log), a, start, seed)
		b[start+5] ^= 1
		var got []string
		scan(bytes.NewReader(b), int64(len(b)), seed, func(_ uint32, _ int, a *Accepted) { got = append(got, a.Device) })
		want := []string{"sensor_000"}
		if secret {
			want = append(want, "victim")
		}
		if !slices.Equal(got, want) {
			t.Errorf("seed known: %v: found %v, want %v", secret, got, want)
		}
	}
}

// Each bit of either copy of the header: the other is used. Both: the one with the outcomes.
func TestDamagedHeader(t *testing.T) {
	f, all := built(t, 4)
	log := read(t, f.path(logName(1)))
	for bit := range 8 * headerSize {
		for _, at := range []int{0, headerCopy} {
			b := bytes.Clone(log)
			b[at+bit/8] ^= 1 << (bit % 8)
			h, err := readHeader(bytes.NewReader(b), kindLog, 0, headerCopy)
			if err != nil || h != headerOf(t, log) {
				t.Fatalf("bit %d of the copy at %d: %+v, %v", bit, at, h, err)
			}
		}
	}
	clear(log[:logStart])
	write(t, f.path(logName(1)), log)
	c := f.snapshot()
	_, got := f.open()
	wantRecovered(t, got, all)

	// And without that one: the segment is lost, the start is not.
	if err := os.Remove(c.path(outcomesName(1))); err != nil {
		t.Fatal(err)
	}
	j, got := c.open()
	if st := j.Stats(); len(got) != 0 || st.Unreadable != 1 || st.Bytes < int64(len(log)) {
		t.Errorf("recovered %d, stats %+v", len(got), st)
	}
	c.wantLogged("a segment of the journal cannot be read: its messages are lost unless the file is repaired; the file is kept")
	if !bytes.Equal(read(t, c.path(logName(1))), log) {
		t.Error("the file was changed")
	}
	if pos, err := j.Append(message(1)); err != nil || pos.segment() != 2 {
		t.Errorf("appended at %v, %v", pos, err)
	}
}

// Recovery of any bytes ends, and gives nothing that was not written as a record of this segment at this place.
func FuzzScan(f *testing.F) {
	log, seed, offsets := buildLog(4)
	f.Add(log[logStart:])
	f.Add(log[logStart : len(log)-5])
	f.Add(log[offsets[1]:])
	damaged := bytes.Clone(log[logStart:])
	damaged[9] ^= 0x40
	damaged[offsets[2]-logStart+100] ^= 1
	f.Add(damaged)
	f.Add(bytes.Repeat([]byte{0xff, 'R', 'J', 0xfe}, 100))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, records []byte) {
		b := append(make([]byte, logStart), records...)
		last := uint32(0)
		result := scan(bytes.NewReader(b), int64(len(b)), seed, func(offset uint32, size int, a *Accepted) {
			if offset <= last || offset%recordAlign != 0 || int(offset)+size > len(b) {
				t.Fatalf("a record of %d bytes at %d", size, offset)
			}
			last = offset
			again := appendRecord(nil, a, offset, seed)
			if len(again) != size || !bytes.Equal(again[:size-recordAlign], b[offset:int(offset)+size-recordAlign]) {
				t.Fatalf("%x is read as %+v, which is written as %x", b[offset:int(offset)+size], a, again)
			}
			var single Accepted
			if _, err := readRecord(bytes.NewReader(b), offset, seed, &single, nil); err != nil || single.Device != a.Device {
				t.Fatalf("read alone: %+v, %v", single, err)
			}
		})
		if result.end < logStart || result.end > max(logStart, int64(len(b))) || result.end+result.torn != int64(len(b)) {
			t.Fatalf("%+v of %d bytes", result, len(b))
		}
	})
}

func FuzzOutcomes(f *testing.F) {
	seed := salt{1}.seed(1)
	b := make([]byte, headerSize)
	b = appendSlot(b, headerSize, 8192, Delivered, seed)
	b = appendSlot(b, headerSize+slotSize, 8400, Dead, seed)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		all, valid, damaged := readOutcomes(bytes.NewReader(b), int64(len(b)), seed)
		if int(valid+damaged) != max(0, len(b)-headerSize)/slotSize || len(all) > int(valid) {
			t.Fatalf("%d outcomes, %d valid, %d damaged of %d bytes", len(all), valid, damaged, len(b))
		}
		for i, o := range all {
			if o.kind != Delivered && o.kind != Dead || i > 0 && o.offset <= all[i-1].offset {
				t.Fatalf("%+v", all)
			}
		}
	})
}

// scan passes over a log of size bytes and gives every message to found, which borrows it, with its offset.
func scan(file io.ReaderAt, size int64, seed uint32, found func(offset uint32, size int, a *Accepted)) scanned {
	return scanRecords(file, size, seed, func(offset uint32, size int, r *record) bool {
		if r.ids == nil {
			found(offset, size, &r.Accepted)
		}
		return true
	})
}
