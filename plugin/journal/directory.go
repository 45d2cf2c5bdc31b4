package journal

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	lockName       = "lock"
	reserveName    = "reserve"
	logSuffix      = ".log"
	outcomesSuffix = ".done"
	stateSuffix    = ".state"
	newSuffix      = ".new" // of a state that is being written
	droppedState   = "dropped"
)

func logName(number uint32) string      { return fmt.Sprintf("%08x%s", number, logSuffix) }
func outcomesName(number uint32) string { return fmt.Sprintf("%08x%s", number, outcomesSuffix) }

// parseName returns the number of the segment that name with the suffix belongs to.
func parseName(name, suffix string) (uint32, bool) {
	digits, found := strings.CutSuffix(name, suffix)
	n, err := strconv.ParseUint(digits, 16, 32)
	if !found || err != nil || n == 0 || fmt.Sprintf("%08x", n) != digits {
		return 0, false
	}
	return uint32(n), true
}

// lockDirectory makes this process the only one with the journal open, until the file is closed or the process ends.
func lockDirectory(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("journal: %w; it must be possible to create this directory", err)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w; the broker's user must be able to write in the directory of the journal", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("journal: flock %s: %w", path, err)
		}
		holder := "another process"
		b := make([]byte, 20)
		n, _ := f.ReadAt(b, 0)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
			holder = "process " + strconv.Itoa(pid)
		}
		return nil, fmt.Errorf("journal: %w: %s has the journal in %q open; two brokers need two directories", ErrLocked, holder, dir)
	}
	// Without the process id the lock holds as well: a full disk must not keep the broker from starting.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0)
	}
	return f, nil
}

// listing is what a directory holds, each in ascending order.
type listing struct {
	logs, outcomes []uint32
	foreign        []string
	leftovers      []string // states that were being written
}

func list(dir string) (listing, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return listing{}, fmt.Errorf("journal: %w", err)
	}
	var l listing
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() {
			l.foreign = append(l.foreign, name)
		} else if n, ok := parseName(name, logSuffix); ok {
			l.logs = append(l.logs, n)
		} else if n, ok := parseName(name, outcomesSuffix); ok {
			l.outcomes = append(l.outcomes, n)
		} else if strings.HasSuffix(name, stateSuffix+newSuffix) {
			l.leftovers = append(l.leftovers, name)
		} else if name != lockName && name != reserveName && !strings.HasSuffix(name, stateSuffix) {
			l.foreign = append(l.foreign, name)
		}
	}
	slices.Sort(l.logs)
	slices.Sort(l.outcomes)
	return l, nil
}

func syncDirectory(dir string, fsync func(*os.File) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return fsync(d)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// createLog creates the log of an empty segment and makes it durable. What fails leaves nothing behind.
func createLog(dir string, h header, fsync func(*os.File) error) (_ *os.File, err error) {
	path := filepath.Join(dir, logName(h.number))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = os.Remove(path)
		}
	}()
	// Outcomes of a former segment with this number are invalid for this one, by its salt.
	if err := removeIfThere(filepath.Join(dir, outcomesName(h.number))); err != nil {
		return nil, err
	}
	if err := writeHeaders(f, h); err != nil {
		return nil, err
	}
	if err := fsync(f); err != nil {
		return nil, err
	}
	if err := syncDirectory(dir, fsync); err != nil {
		return nil, err
	}
	return f, nil
}

// A state is a file NAME.state: 8 bytes of magic, CRC-32C of the rest, the rest.
const (
	stateMagic  = "MQBSTAT\n"
	stateHeader = 12
	maxState    = 64 << 20
)

// ErrDamaged is returned for what is there but is not what was written.
var ErrDamaged = errors.New("damaged")

func statePath(dir, name string) (string, error) {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && r != '-' }) {
		return "", fmt.Errorf("journal: state name %q: only a-z and '-' are possible", name)
	}
	return filepath.Join(dir, name+stateSuffix), nil
}

// LoadState returns what [Journal.SaveState] saved last under the name in the journal at dir. It needs no open journal,
// so that recovery can build on it. The error is [fs.ErrNotExist] if nothing was saved, [ErrDamaged] if it does not read
// as it was written.
func LoadState(dir, name string) ([]byte, error) {
	path, err := statePath(dir, name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if len(b) < stateHeader || len(b) > maxState || string(b[:8]) != stateMagic ||
		binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[stateHeader:], castagnoli) {
		return nil, fmt.Errorf("journal: %s: %w", path, ErrDamaged)
	}
	return b[stateHeader:], nil
}

// errReplaced is for a state that was replaced, which a power failure may undo: the fsync of the directory failed.
var errReplaced = errors.New("it is saved, but a power failure may bring the former one back")

// saveState replaces a state at once: after a power failure there is the former one or this one. With an error
// there is the former one, unless it is errReplaced.
func saveState(dir, name string, data []byte, fsync func(*os.File) error) (err error) {
	path, err := statePath(dir, name)
	if err != nil {
		return err
	}
	if len(data) > maxState-stateHeader {
		return fmt.Errorf("journal: state %q: %d bytes, at most %d are possible", name, len(data), maxState-stateHeader)
	}
	b := append(make([]byte, 0, stateHeader+len(data)), stateMagic...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(data, castagnoli))
	b = append(b, data...)
	temporary := path + newSuffix
	defer func() {
		if err != nil {
			if !errors.Is(err, errReplaced) {
				_ = os.Remove(temporary)
			}
			err = fmt.Errorf("journal: state %q: %w", name, err)
		}
	}()
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = fsync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	if err := syncDirectory(dir, fsync); err != nil {
		return fmt.Errorf("%w: %w", errReplaced, err)
	}
	return nil
}

// dropped is the journal's own state: what the segments held that are no more. A segment is dropped when this state,
// with the segment in it, is saved; its files are removed after that.
type dropped struct {
	Delivered uint64         `json:"delivered"`
	Dead      uint64         `json:"dead"`
	Segments  []droppedName  `json:"segments"`         // those whose files may still be there
	Ranges    []droppedRange `json:"ranges,omitempty"` // every number that was dropped, ascending; at most maxRanges
}

type droppedName struct {
	Number uint32 `json:"number"`
	Salt   salt   `json:"salt"`
}

// A droppedRange is successive numbers, both ends included.
type droppedRange struct {
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

// add notes that a segment was dropped.
func (d *dropped) add(number uint32) {
	i, found := d.rangeAt(number)
	if found {
		return
	}
	d.Ranges = slices.Insert(d.Ranges, i, droppedRange{number, number})
	if next := i + 1; next < len(d.Ranges) && d.Ranges[next].First == number+1 {
		d.Ranges[i].Last = d.Ranges[next].Last
		d.Ranges = slices.Delete(d.Ranges, next, next+1)
	}
	if i > 0 && d.Ranges[i-1].Last+1 == number {
		d.Ranges[i-1].Last = d.Ranges[i].Last
		d.Ranges = slices.Delete(d.Ranges, i, i+1)
	}
}

// maxRanges bounds the state. There are no more ranges than segments are left, but for numbers that were never given.
const maxRanges = 4096

// forgetOldest leaves out the oldest ranges beyond maxRanges.
func (d *dropped) forgetOldest() {
	if n := len(d.Ranges) - maxRanges; n > 0 {
		d.Ranges = slices.Delete(d.Ranges, 0, n)
	}
}

// has reports whether a segment was dropped. The number also says so, since none is given twice: files that come
// back (from a backup, say) bring back no message that was delivered, and void nothing that was moved out of them.
func (d *dropped) has(number uint32, s salt) bool {
	if slices.Contains(d.Segments, droppedName{number, s}) {
		return true
	}
	_, found := d.rangeAt(number)
	return found
}

// rangeAt reports whether a number is in a range, and where one that begins with it would be.
func (d *dropped) rangeAt(number uint32) (i int, found bool) {
	i, found = slices.BinarySearchFunc(d.Ranges, number, func(r droppedRange, number uint32) int { return cmp.Compare(r.First, number) })
	return i, found || i > 0 && d.Ranges[i-1].Last >= number
}

// between returns how many segments were dropped between two others.
func (d *dropped) between(from, to uint32) (n uint64) {
	for _, r := range d.Ranges {
		if first, last := max(r.First, from+1), min(r.Last, to-1); first <= last {
			n += uint64(last-first) + 1
		}
	}
	return n
}

func (d *dropped) save(dir string, fsync func(*os.File) error) error {
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return saveState(dir, droppedState, b, fsync)
}

func loadDropped(dir string) (d dropped, err error) {
	b, err := LoadState(dir, droppedState)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return dropped{}, fmt.Errorf("journal: state %q: %w: %w", droppedState, ErrDamaged, err)
	}
	for _, n := range d.Segments { // format 1 has no ranges
		d.add(n.Number)
	}
	return d, nil
}

// isFull reports whether an error of a write says that there is no room, now or for this file.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
