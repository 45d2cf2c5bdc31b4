package journal

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// The header of both files of a segment, little-endian, 64 bytes:
//
//	 0  magic    8  "MQBJRNL\n"
//	 8  version  4  formatVersion, or an earlier one
//	12  kind     4  kindLog, kindOutcomes or kindCollector
//	16  segment  4
//	20  zero     4
//	24  salt     16 random, the same in both files
//	40  created  8  unix nanoseconds
//	48  zero     12
//	60  CRC-32C  4  of the 60 bytes before
//
// A log has it twice, in two blocks of the disk, and its outcomes have the salt too: without it no record can be read.
const (
	headerSize    = 64
	headerCopy    = 4096 // where a log's header is repeated
	logStart      = 8192 // of the first record
	headerMagic   = "MQBJRNL\n"
	formatVersion = 2
	kindLog       = 1
	kindOutcomes  = 2
	kindCollector = 3 // a log into which messages are moved
)

var (
	errDamagedHeader = errors.New("its header is damaged")
	errNewerVersion  = errors.New("a newer version of this program wrote it")
)

type salt [16]byte

func newSalt() (s salt) {
	rand.Read(s[:]) // never fails
	return s
}

// seed starts every checksum in the segment. A sender who does not know the salt cannot put into a payload what passes
// for a record, and no record of another segment, or of a former one with this number, is valid in this one.
func (s salt) seed(number uint32) uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint32(s[:], number), castagnoli)
}

type header struct {
	kind    uint32
	number  uint32
	salt    salt
	created time.Time
}

func (h header) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, headerSize), headerMagic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, h.kind)
	b = le.AppendUint32(b, h.number)
	b = le.AppendUint32(b, 0)
	b = append(b, h.salt[:]...)
	b = le.AppendUint64(b, uint64(h.created.UnixNano()))
	b = append(b, make([]byte, 12)...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseHeaderBlock(b []byte) (header, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:8]) != headerMagic || le.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return header{}, errDamagedHeader
	}
	if v := le.Uint32(b[8:]); v == 0 || v > formatVersion {
		return header{}, fmt.Errorf("%w: its format is version %d, known is %d; install that version again, or a later one, since without "+
			"the journal what waits in it is lost", errNewerVersion, v, formatVersion)
	}
	return header{
		kind:    le.Uint32(b[12:]),
		number:  le.Uint32(b[16:]),
		salt:    salt(b[24:40]),
		created: time.Unix(0, int64(le.Uint64(b[40:]))),
	}, nil
}

// readLogHeader returns the header of a log, of either kind.
func readLogHeader(f io.ReaderAt) (header, error) {
	h, err := readHeader(f, kindLog, 0, headerCopy)
	if errors.Is(err, errDamagedHeader) {
		return readHeader(f, kindCollector, 0, headerCopy)
	}
	return h, err
}

// readHeader returns the header of a file of the kind; at are the places of its copies.
func readHeader(f io.ReaderAt, kind uint32, at ...int64) (header, error) {
	err := errDamagedHeader
	for _, place := range at {
		b := make([]byte, headerSize)
		if _, readErr := f.ReadAt(b, place); readErr != nil {
			continue
		}
		h, parseErr := parseHeaderBlock(b)
		if parseErr == nil && h.kind == kind {
			return h, nil
		}
		if errors.Is(parseErr, errNewerVersion) {
			err = parseErr
		}
	}
	return header{}, err
}

// A segment is one log with its outcomes.
type segment struct {
	number uint32
	seed   uint32
	salt   salt

	// The appending thread's, and the background's once the segment is sealed.
	end      int64 // of the log, bytes
	accepted tally
	newest   int64 // timestamp, unix seconds
	log      *os.File

	distrusted atomic.Bool // an fsync of the log failed

	// The background's.
	closed          bool   // nothing more is appended, and log is closed
	outcomesEnd     int64  // of the outcomes, bytes; 0: no file yet
	outcomes        uint64 // how many are in the file, as far as known: repeated ones may be counted twice
	delivered, dead uint64 // those among them that the journal's totals have counted
	stray           tally  // outcomes in the file without a record that could be read
	strayDelivered  uint64
	unsynced        bool      // recovered, and possibly not on the disk yet
	settledBytes    int64     // of records, an outcome of which was written
	settledAt       time.Time // when the latest was
	retryAt         time.Time // it is not to be collected before

	// Of a collector; the background's.
	collector bool
	tail      bool             // behind end is what has to be cut off
	newestID  int64            // timestamp of the ids, unix seconds
	ids       map[string]int64 // bytes of ids, by device
	idRecords int64            // bytes of the blocks of ids

	// Guarded by Journal.mu.
	reader *os.File
	used   uint64 // when reader was used last
}

func newSegment(number uint32, s salt) *segment {
	return &segment{number: number, salt: s, seed: s.seed(number), end: logStart, newest: math.MinInt64, newestID: math.MinInt64}
}

func (s *segment) position(offset uint32) Position {
	return Position(uint64(s.number)<<32 | uint64(offset))
}

// charge is what the segment takes of MaxBytes: its files, and the outcomes to come.
func (s *segment) charge() int64 { return s.end + headerSize + int64(s.accepted.count)*slotSize }

// A tally identifies a set of offsets, up to chance, by its size and the sum of its members' hashes. It lets the
// outcomes in a file be held against the records without remembering either.
type tally struct{ count, sum uint64 }

func (t *tally) add(offset uint32) {
	t.count++
	// The finalizer of splitmix64: no two offsets share a hash.
	h := uint64(offset) + 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	t.sum += h ^ h>>31
}

func (t tally) plus(u tally) tally { return tally{t.count + u.count, t.sum + u.sum} }

// A window reads a file from front to back and keeps what a record needs in memory. What the disk cannot read counts as
// zero bytes, and so as damage.
type window struct {
	file       io.ReaderAt
	size       int64
	buf        []byte
	base       int64 // of buf in the file
	unreadable int64 // bytes
}

const (
	windowSize = 1 << 20
	blockSize  = 4096
)

// at returns the n bytes at offset, which are within the file. They are valid until the next call.
func (w *window) at(offset int64, n int) []byte {
	if from := offset - w.base; from < 0 || from+int64(n) > int64(len(w.buf)) {
		w.fill(offset, n)
	}
	from := int(offset - w.base)
	return w.buf[from : from+n : from+n]
}

func (w *window) fill(offset int64, n int) {
	n = int(min(int64(max(n, windowSize)), w.size-offset))
	if cap(w.buf) < n || cap(w.buf) > 2*windowSize && n <= windowSize {
		w.buf = make([]byte, n)
	}
	w.buf, w.base = w.buf[:n], offset
	for done := 0; done < n; {
		got, err := w.file.ReadAt(w.buf[done:], offset+int64(done))
		done += got
		if err == nil || done == n {
			continue
		}
		skip := min(n-done, blockSize-int((offset+int64(done))%blockSize))
		clear(w.buf[done : done+skip])
		w.unreadable += int64(skip)
		done += skip
	}
}

// scanned is what a pass over a log found besides records.
type scanned struct {
	end        int64 // of the last valid record, or damaged one of known length
	damaged    int   // records, or stretches that were records
	firstAt    int64 // where the first damage is
	torn       int64 // bytes behind end
	unreadable int64 // bytes the disk did not read
}

// scanRecords passes over a log of size bytes and gives every valid record to found, which borrows it, with its offset and
// the size it takes, until found returns false.
// A record whose body is damaged costs itself. Where a header is damaged, the next valid header is searched for.
func scanRecords(file io.ReaderAt, size int64, seed uint32, found func(offset uint32, size int, r *record) bool) scanned {
	w := window{file: file, size: min(size, math.MaxUint32)}
	var r record
	s := scanned{end: logStart}
	damage := func(at int64) {
		if s.damaged == 0 {
			s.firstAt = at
		}
		s.damaged++
	}
	lost := int64(-1) // where a stretch without a valid header began
	for at := int64(logStart); at+recordHeader <= w.size; {
		length, ok := parseHeader(w.at(at, recordHeader), uint32(at), seed)
		n := aligned(recordHeader + length)
		if !ok || at+int64(n) > w.size {
			if lost < 0 {
				lost = at
			}
			at = w.search(at + recordAlign)
			continue
		}
		if lost >= 0 {
			damage(lost)
			lost = -1
		}
		if parseRecord(w.at(at, n), seed, &r) == nil {
			if !found(uint32(at), n, &r) {
				break
			}
		} else {
			damage(at)
		}
		at += int64(n)
		s.end = at
	}
	s.torn = max(0, size-s.end)
	s.unreadable = w.unreadable
	return s
}

// search returns the first place from at on where a record may begin, or the end of the file.
func (w *window) search(at int64) int64 {
	for at+recordHeader <= w.size {
		w.at(at, recordHeader)
		b := w.buf[at-w.base:] // at least a header, and all that is in memory
		for i := 0; i+recordAlign <= len(b); i += recordAlign {
			if binary.LittleEndian.Uint64(b[i:]) == recordStart(uint32(at)+uint32(i)) {
				return at + int64(i)
			}
		}
		at += int64(len(b) &^ (recordAlign - 1))
	}
	return w.size
}

// An outcome names a record of a segment and what happened to it.
type outcome struct {
	offset uint32
	kind   Outcome
}

// readOutcomes returns the valid outcomes in a file, one for each offset, by offset, how many slots are valid, and how
// many are not. Of two outcomes for one record Dead counts.
func readOutcomes(file io.ReaderAt, size int64, seed uint32) (all []outcome, valid, damaged uint64) {
	w := window{file: file, size: size}
	for at := int64(headerSize); at+slotSize <= size; at += slotSize {
		offset, kind, ok := parseSlot(w.at(at, slotSize), at, seed)
		if !ok {
			damaged++
			continue
		}
		all = append(all, outcome{offset, kind})
	}
	valid = uint64(len(all))
	slices.SortFunc(all, func(a, b outcome) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(b.kind, a.kind))
	})
	all = slices.CompactFunc(all, func(a, b outcome) bool { return a.offset == b.offset })
	return all, valid, damaged
}

// writeHeaders writes what a new log begins with.
func writeHeaders(f *os.File, h header) error {
	block := make([]byte, logStart)
	copy(block, h.encode())
	copy(block[headerCopy:], h.encode())
	_, err := f.WriteAt(block, 0)
	return err
}
