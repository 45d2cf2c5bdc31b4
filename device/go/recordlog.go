package device

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// A recordLog is a file of records, appended to and replaced whole. The project's other files of records do not fit:
// plugin/linefile has lines of at most 4 KiB, plugin/journal holds the messages of many devices.
//
//	header:  8 bytes, logMagic
//	record:  length    4 bytes, of the payload
//	         checksum  4 bytes, CRC-32C of length, synced and payload
//	         synced    8 bytes: how much of the file was on the disk when the record was written
//	         payload
//
// Integers have the least significant byte first. What a crash can damage is what was not synced, and nothing that was
// written after the next sync can stand behind it. So damage is a crash's if no intact record behind it has been written after
// what is damaged was synced; it is then cut off. Otherwise it is an error.
type recordLog struct {
	path   string
	f      *os.File
	size   int64
	synced int64
	base   int64 // size after the last replacement; set by the user when it was opened
	broken bool  // a write or a sync has failed: what the file has is not known until it is replaced
}

const (
	logMagic     = "mbdev01\n"
	recordHeader = 16
	// maxRecord bounds a record's payload: the largest message, and what is kept with it.
	maxRecord = maxMessageBytes + 4<<10
	// maxUnsynced bounds what is written between two syncs, in bytes.
	maxUnsynced = maxRecord + 2<<20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged says that a file is damaged where no crash can have damaged it.
var errDamaged = errors.New("damaged; move the state directory away to begin without it")

// openLog opens the file, and makes it if there is none. take is given each record; it must not keep it.
func openLog(path string, take func([]byte) error) (*recordLog, error) {
	l := &recordLog{path: path}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return l, l.replace(func(func([]byte) bool) {})
	}
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	l.f = f
	if err := l.read(take); err != nil {
		return nil, errors.Join(fmt.Errorf("device: %s: %w", path, err), f.Close())
	}
	return l, nil
}

// read gives every record to take and cuts off what a crash has damaged.
func (l *recordLog) read(take func([]byte) error) error {
	info, err := l.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	r := bufio.NewReaderSize(l.f, 64<<10)
	magic := make([]byte, len(logMagic))
	// The file is made complete and renamed, so no crash cuts its header.
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != logMagic {
		return errors.New("not an outbox of this version")
	}
	at := int64(len(logMagic))
	for {
		payload, err := readRecord(r, at, info.Size())
		if errors.Is(err, errDamaged) {
			break
		}
		if err != nil {
			return err
		}
		if len(payload) > 0 { // see replace
			if err := take(payload); err != nil {
				return err
			}
		}
		at += recordHeader + int64(len(payload))
		if at == info.Size() {
			break
		}
	}
	if at < info.Size() {
		if err := l.checkTail(at, info.Size()); err != nil {
			return err
		}
		if err := errors.Join(l.f.Truncate(at), l.f.Sync()); err != nil {
			return err
		}
	}
	l.size, l.synced, l.base = at, at, at
	_, err = l.f.Seek(at, io.SeekStart)
	return err
}

// readRecord reads the record at a place. The error is errDamaged, or that of reading.
func readRecord(r io.Reader, at, size int64) ([]byte, error) {
	var header [recordHeader]byte
	if size-at < recordHeader {
		return nil, errDamaged
	}
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(header[:]))
	if n > maxRecord || n > size-at-recordHeader || binary.LittleEndian.Uint64(header[8:]) > uint64(at) {
		return nil, errDamaged
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(header[4:]) != checksum(header[:], payload) {
		return nil, errDamaged
	}
	return payload, nil
}

func checksum(header, payload []byte) uint32 {
	sum := crc32.Update(0, castagnoli, header[:4])
	sum = crc32.Update(sum, castagnoli, header[8:recordHeader])
	return crc32.Update(sum, castagnoli, payload)
}

// checkTail looks for an intact record behind the damage at a place that was written after that place was synced.
func (l *recordLog) checkTail(damage, size int64) error {
	if size-damage > maxUnsynced {
		return errDamaged
	}
	tail := make([]byte, size-damage)
	if _, err := l.f.ReadAt(tail, damage); err != nil {
		return err
	}
	for i := 1; i+recordHeader <= len(tail); i++ {
		header, at := tail[i:i+recordHeader], damage+int64(i)
		n, synced := int64(binary.LittleEndian.Uint32(header)), binary.LittleEndian.Uint64(header[8:])
		if synced <= uint64(damage) || synced > uint64(at) || n > int64(len(tail)-i-recordHeader) {
			continue
		}
		if payload := tail[i+recordHeader:][:n]; binary.LittleEndian.Uint32(header[4:]) == checksum(header, payload) {
			return errDamaged
		}
	}
	return nil
}

func (l *recordLog) appendRecord(to, payload []byte) []byte {
	var header [recordHeader]byte
	binary.LittleEndian.PutUint32(header[:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(header[8:], uint64(l.synced))
	binary.LittleEndian.PutUint32(header[4:], checksum(header[:], payload))
	return append(append(to, header[:]...), payload...)
}

// add appends records. With sync they are on the disk when it returns. After an error nothing more can be added until the file
// is replaced.
func (l *recordLog) add(sync bool, payloads ...[]byte) error {
	if l.broken {
		return errors.New("device: the outbox could not be written before")
	}
	var b []byte
	for _, payload := range payloads {
		if len(payload) > maxRecord {
			return errTooLarge
		}
		b = l.appendRecord(b, payload)
	}
	if len(b) > maxRecord+1<<20 {
		return errTooLarge
	}
	sync = sync || l.size+int64(len(b))-l.synced > 1<<20
	_, err := l.f.Write(b)
	if err == nil && sync {
		err = l.f.Sync()
	}
	if err != nil {
		// Linux forgets which pages a failed fsync has not written, so the next one proves nothing.
		l.broken = true
		return fmt.Errorf("device: writing the outbox: %w", err)
	}
	l.size += int64(len(b))
	if sync {
		l.synced = l.size
	}
	return nil
}

// replace has the file hold these records only: after a crash the old ones are there, or the new ones.
func (l *recordLog) replace(payloads iter.Seq[[]byte]) (err error) {
	temporary := l.path + ".new"
	f, err := os.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("device: %w", err)
	}
	w := bufio.NewWriterSize(f, 64<<10)
	next := recordLog{path: l.path, f: f}
	_, err = w.WriteString(logMagic)
	next.synced = int64(len(logMagic))
	// Nothing of this file is there before all of it is on the disk. So each record says that what is before it was synced, and
	// an empty one stands behind the last.
	put := func(payload []byte) bool {
		if err == nil {
			var n int
			n, err = w.Write(next.appendRecord(nil, payload))
			next.synced += int64(n)
		}
		return err == nil
	}
	payloads(put)
	put(nil)
	if err == nil {
		err = errors.Join(w.Flush(), f.Sync())
	}
	if err == nil {
		err = os.Rename(temporary, l.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err != nil {
		l.broken = true // maybe it was renamed
		return fmt.Errorf("device: writing the outbox: %w", errors.Join(err, f.Close(), removeIfThere(temporary)))
	}
	if l.f != nil {
		_ = l.f.Close() // it has been replaced
	}
	next.size, next.base = next.synced, next.synced
	*l = next
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// close closes the file.
func (l *recordLog) close() error { return l.f.Close() }

// grown reports whether replacing the file would make it much smaller.
func (l *recordLog) grown() bool { return l.size > 2*l.base+1<<20 }
