package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"slices"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// severalSegments returns a closed journal of at least four segments, with messages in each.
func severalSegments(t *testing.T) (*fixture, []recovered) {
	f := newFixture(t)
	f.SegmentBytes = minSegmentBytes
	j, _ := f.open()
	var all []recovered
	for i := 0; len(all) == 0 || all[len(all)-1].pos.segment() < 4; i++ {
		all = append(all, appendAll(t, j, i, i+1)...)
		testkit.Eventually(t, "the next segment", func() bool { return j.next.Load() != nil })
	}
	f.close(j)
	return f, all
}

func TestMissingSegment(t *testing.T) {
	f, all := severalSegments(t)
	if err := os.Remove(f.path(logName(2))); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	wantRecovered(t, got, slices.DeleteFunc(all, func(r recovered) bool { return r.pos.segment() == 2 }))
	if st := j.Stats(); st.Missing != 1 {
		t.Errorf("stats %+v", st)
	}
	f.wantLogged("segments of the journal are missing; their messages are lost")
	f.wantLogged("after=00000001.log before=00000003.log")
}

func TestRenamedSegment(t *testing.T) {
	f, all := severalSegments(t)
	write(t, f.path(logName(0xfffffffe)), read(t, f.path(logName(2))))
	j, got := f.open()
	wantRecovered(t, got, all)
	if st := j.Stats(); st.Unreadable != 1 {
		t.Errorf("stats %+v", st)
	}
	f.wantLogged("it is segment 00000002.log under another name")
	if pos, err := j.Append(message(0)); err != nil || pos.segment() > 10 {
		t.Errorf("appended at %v, %v", pos, err)
	}
}

func TestForeignFiles(t *testing.T) {
	f, all := built(t, 4)
	foreign := []string{"notes.txt", "1.log", "00000000.log", "0000000A.log", "00000001.log~", "00000007.done"}
	for _, name := range foreign {
		write(t, f.path(name), []byte("mine"))
	}
	if err := os.Mkdir(f.path("00000009.log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", f.path("00000008.log")); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	wantRecovered(t, got, all)
	if st := j.Stats(); st.Foreign != uint64(len(foreign)+2) || st.Missing != 0 {
		t.Errorf("stats %+v", st)
	}
	f.wantLogged("a file in the journal's directory does not belong to the journal; it is ignored")
	f.wantLogged("notes.txt")
	f.close(j)
	for _, name := range foreign {
		if string(read(t, f.path(name))) != "mine" {
			t.Errorf("%s was changed", name)
		}
	}
}

// The outcomes of a segment that is gone.
func TestStrayOutcomes(t *testing.T) {
	f, _ := built(t, 4)
	if err := os.Remove(f.path(logName(1))); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	if len(got) != 0 {
		t.Errorf("recovered %d messages", len(got))
	}
	f.wantLogged("outcomes of a segment that is gone are removed")
	want := appendAll(t, j, 0, 4)
	f.close(j)
	_, got = f.open()
	wantRecovered(t, got, want)
}

// What a crash leaves of a segment that was being made.
func TestUnfinishedSegment(t *testing.T) {
	for _, size := range []int{0, 10, headerSize, headerCopy + 10, logStart} {
		f, all := built(t, 4)
		b := make([]byte, logStart)
		h := header{kind: kindLog, number: 2, salt: salt{9}, created: time.Unix(epoch, 0)}
		copy(b, h.encode())
		copy(b[headerCopy:], h.encode())
		write(t, f.path(logName(2)), b[:size])
		write(t, f.path(logName(3)), make([]byte, size))
		j, got := f.open()
		wantRecovered(t, got, all)
		if st := j.Stats(); st.Missing+st.Unreadable+st.TornBytes+st.Damaged != 0 {
			t.Errorf("size %d: %+v", size, st)
		}
		if pos, err := j.Append(message(1)); err != nil || pos.segment() != 2 {
			t.Errorf("size %d: appended at %v, %v", size, pos, err)
		}
	}
}

// A journal of a later version is not touched.
func TestNewerVersion(t *testing.T) {
	f, _ := built(t, 4)
	log := read(t, f.path(logName(1)))
	h := newerHeader(headerOf(t, log))
	copy(log, h)
	copy(log[headerCopy:], h)
	write(t, f.path(logName(1)), log)
	_, _, err := f.tryOpen()
	want := "journal: " + f.path(logName(1)) + ": a newer version of this program wrote it: its format is version 3, known is 2; " +
		"install that version again, or a later one, since without the journal what waits in it is lost"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if !bytes.Equal(read(t, f.path(logName(1))), log) {
		t.Error("the file was changed")
	}
}

func TestDamagedTotals(t *testing.T) {
	f, all := built(t, 4)
	write(t, f.path("dropped.state"), []byte("x"))
	_, got := f.open()
	wantRecovered(t, got, all)
	f.wantLogged("the journal's totals are damaged; they start again")
}

func newerHeader(h header) []byte {
	b := h.encode()
	b[8]++
	return binary.LittleEndian.AppendUint32(b[:headerSize-4], crc32.Checksum(b[:headerSize-4], castagnoli))
}
