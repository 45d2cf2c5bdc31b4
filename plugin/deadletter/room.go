package deadletter

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"mosquitto-bouncer/plugin/sqlite"
)

// What Add answers with, wrapped, where a letter has no room. Nothing was stored then, and it may be tried again.
var (
	ErrDeviceFull = errors.New("the device's share of the dead letters is used up")
	ErrFull       = errors.New("the dead letters have reached their maximum size")
)

// Limits bound the database. The zero value: no bound.
type Limits struct {
	// MaxBytes is the room that the database may take; 0: any. Less counts where the disk is small: a quarter of the file
	// system is always for the letters, and beyond that what Leave leaves.
	MaxBytes int64
	// DeviceShare is which part of it one device's letters may take.
	DeviceShare float64
	// DropOldest removes the oldest letters that no operator has asked to requeue, the device's own or all devices', instead of
	// refusing another.
	DropOldest bool
	// Leave returns how many bytes of the same file system others are going to need. nil: none.
	Leave func() int64
}

// Usage is what there is and may be.
type Usage struct {
	Letters  int64
	Bytes    int64  // that the database takes
	MaxBytes int64  // that it may take, the size of the disk considered; 0: any
	Dropped  uint64 // letters that were removed for others, by this process
}

// Full reports whether there is no room for another letter of any device.
func (u Usage) Full() bool { return u.MaxBytes > 0 && u.Bytes+minRoom > u.MaxBytes }

const (
	// reserveBytes is how large the file of SQLite's rollback journal always is: room on the disk with which letters can
	// be dropped though the disk is full.
	reserveBytes = 1 << 20
	// minRoom is what the smallest letter takes, about.
	minRoom = 1024
	// diskShare is which part of the file system the letters may always take.
	diskShare = 4
	// diskMargin is what they leave of it, at least.
	diskMargin = 512 << 10
)

// room is what a letter takes in the database, in SQL: %[1]s is the row. A payload that does not fit in a page with others
// takes whole pages of 4 KiB.
const room = `(256 + 3 * length(CAST(%[1]sdevice AS BLOB)) + length(CAST(%[1]stopic AS BLOB)) + length(CAST(%[1]straceparent AS BLOB))
	+ length(CAST(%[1]sexcerpt AS BLOB)) + CASE WHEN %[1]sbytes > 1000 THEN (%[1]sbytes + 4095) / 4096 * 4096 ELSE %[1]sbytes END)`

// room is the same of a letter that is to be stored.
func (l *Letter) room() int64 {
	n := int64(len(l.Payload))
	if n > 1000 {
		n = (n + 4095) / 4096 * 4096
	}
	return 256 + 3*int64(len(l.Device)) + int64(len(l.Topic)+len(l.Traceparent)+len(l.Excerpt)) + n
}

// devices is the second version: how much room each device's letters take, kept by triggers as the totals are.
func devices() string {
	of := func(row string) string { return fmt.Sprintf(room, row) }
	return strings.NewReplacer("ROOM()", of(""), "ROOM(NEW)", of("NEW."), "ROOM(OLD)", of("OLD.")).Replace(`
CREATE TABLE devices (
	device  TEXT PRIMARY KEY,
	letters INTEGER NOT NULL,
	room    INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO devices SELECT device, count(*), sum(ROOM()) FROM letters GROUP BY device;
CREATE TRIGGER devices_insert AFTER INSERT ON letters BEGIN
	INSERT INTO devices VALUES (NEW.device, 1, ROOM(NEW))
		ON CONFLICT (device) DO UPDATE SET letters = letters + 1, room = room + excluded.room;
END;
CREATE TRIGGER devices_update AFTER UPDATE OF bytes, topic, traceparent, excerpt ON letters BEGIN
	UPDATE devices SET room = room + ROOM(NEW) - ROOM(OLD) WHERE device = NEW.device;
END;
CREATE TRIGGER devices_delete AFTER DELETE ON letters BEGIN
	UPDATE devices SET letters = letters - 1, room = room - ROOM(OLD) WHERE device = OLD.device;
	DELETE FROM devices WHERE device = OLD.device AND letters <= 0;
END;`)
}

// used returns how many bytes the database takes, without pages that are free to be used again.
func usedBytes(ctx context.Context, conn *sql.Conn) (int64, error) {
	return sqlite.Number(ctx, conn, `SELECT (page_count - freelist_count) * page_size
		FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()`)
}

// fileBytes returns how long the database's file is.
func fileBytes(ctx context.Context, conn *sql.Conn) (int64, error) {
	return sqlite.Number(ctx, conn, "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
}

// capacity returns what the database may take, 0 for any, when its file is so long. Free pages in the file are room that
// it has already.
func (s *Store) capacity(file int64) int64 {
	if s.limits.MaxBytes == 0 {
		return 0
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(s.path), &disk); err != nil {
		return s.limits.MaxBytes
	}
	size := int64(disk.Blocks) * int64(disk.Bsize) //nolint:unconvert // the types differ by platform
	free := int64(disk.Bavail) * int64(disk.Bsize)
	leave := int64(0)
	if s.limits.Leave != nil {
		leave = max(0, s.limits.Leave())
	}
	most := max(file+free-leave, size/diskShare)
	most = min(most, file+free-min(diskMargin, size/16))
	return max(1, min(s.limits.MaxBytes, most))
}

// most returns the capacity at the beginning of a transaction: what one has written is not on the disk yet.
func (s *Store) most(ctx context.Context, conn *sql.Conn) (int64, error) {
	if s.limits.MaxBytes == 0 {
		return 0, nil
	}
	file, err := fileBytes(ctx, conn)
	return s.capacity(file), err
}

// admit makes sure that there is room for a letter among so many bytes, or says why there is none. 0: any number.
func (s *Store) admit(ctx context.Context, conn *sql.Conn, l *Letter, most int64) error {
	if most == 0 {
		return nil
	}
	there, err := sqlite.Number(ctx, conn, "SELECT count(*) FROM letters WHERE device = ? AND message_id = ? AND timestamp = ?",
		l.Device, l.MessageID, l.Timestamp)
	if err != nil || there > 0 {
		return err // it takes the place of one
	}
	refused, err := s.refusal(ctx, conn, l.Device, l.room(), most)
	if refused == nil || err != nil || !s.limits.DropOldest {
		return cmp.Or(err, refused)
	}
	return s.displace(ctx, conn, l, most, refused)
}

// displace drops the oldest letters until there is room for l. If there cannot be, none is dropped, and the error is
// refused.
func (s *Store) displace(ctx context.Context, conn *sql.Conn, l *Letter, most int64, refused error) (err error) {
	used, err := usedBytes(ctx, conn)
	if err != nil {
		return err
	}
	letters, err := sqlite.Number(ctx, conn, "SELECT coalesce(sum(room), 0) FROM devices")
	if err != nil {
		return err
	}
	if used-letters+l.room() > most {
		return refused
	}
	if _, err := conn.ExecContext(ctx, "SAVEPOINT displace"); err != nil {
		return err
	}
	dropped := uint64(0)
	defer func() {
		end := "RELEASE displace"
		if err != nil {
			end = "ROLLBACK TO displace; RELEASE displace"
		}
		if _, failed := conn.ExecContext(context.WithoutCancel(ctx), end); failed != nil {
			err = failed
		} else if err == nil {
			s.dropped.Add(dropped)
		}
	}()
	for {
		device := ""
		if errors.Is(refused, ErrDeviceFull) {
			device = l.Device
		}
		was := refused
		switch there, err := s.dropOldest(ctx, conn, device); {
		case err != nil:
			return err
		case !there:
			return was
		}
		dropped++
		if refused, err = s.refusal(ctx, conn, l.Device, l.room(), most); err != nil || refused == nil {
			return err
		}
	}
}

// refusal says why there is no room for a letter of the device that needs so many bytes. A device that has none may have
// one of any size.
func (s *Store) refusal(ctx context.Context, conn *sql.Conn, device string, need, most int64) (refused, err error) {
	if most == 0 {
		return nil, nil
	}
	used, err := usedBytes(ctx, conn)
	if err != nil {
		return nil, err
	}
	own, err := sqlite.Number(ctx, conn, "SELECT coalesce(sum(room), 0) FROM devices WHERE device = ?", device)
	if err != nil {
		return nil, err
	}
	share := int64(s.limits.DeviceShare * float64(most))
	const cure = "requeue or drop letters with bouncerctl dead, or raise [dead_letters] "
	switch {
	case own > 0 && own+need > share:
		return fmt.Errorf("%w, %d of %d bytes; %sdevice_share", ErrDeviceFull, own, share, cure), nil
	case used+need > most:
		return fmt.Errorf("%w, %d of %d bytes; %smax_bytes, or make room on the disk", ErrFull, used, most, cure), nil
	}
	return nil, nil
}

// dropOldest removes the oldest letter that is not to be requeued, of the device or, if that is "", of all.
func (s *Store) dropOldest(ctx context.Context, conn *sql.Conn, device string) (bool, error) {
	query := "DELETE FROM letters WHERE id = (SELECT id FROM letters WHERE requeued_at IS NULL ORDER BY died_at LIMIT 1)"
	args := []any(nil)
	if device != "" {
		query = "DELETE FROM letters WHERE id = (SELECT id FROM letters WHERE device = ? AND requeued_at IS NULL ORDER BY died_at LIMIT 1)"
		args = append(args, device)
	}
	result, err := conn.ExecContext(ctx, query, args...)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// Usage returns what there is. It is quick however much that is.
func (s *Store) Usage(ctx context.Context) (u Usage, err error) {
	err = s.use(ctx, func(conn *sql.Conn) (err error) {
		if u.Bytes, err = usedBytes(ctx, conn); err != nil {
			return err
		}
		if u.MaxBytes, err = s.most(ctx, conn); err != nil {
			return err
		}
		u.Dropped = s.dropped.Load()
		u.Letters, err = sqlite.Number(ctx, conn, "SELECT letters FROM totals")
		return err
	})
	return u, err
}

// noteWant notes how much room the smallest letter of a device needs that was refused: 0 if none was.
func (s *Store) noteWant(device string, need int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch have, is := s.wants[device]; {
	case need == 0:
		delete(s.wants, device)
	case !is || need < have:
		if s.wants == nil {
			s.wants = make(map[string]int64)
		}
		s.wants[device] = need
	}
}

func (s *Store) want(device string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.wants[device], minRoom)
}

// HasRoom returns those of the devices that have room for a letter that was refused.
func (s *Store) HasRoom(ctx context.Context, devices []string) (with []string, err error) {
	err = s.use(ctx, func(conn *sql.Conn) error {
		most, err := s.most(ctx, conn)
		if err != nil {
			return err
		}
		for _, device := range devices {
			refused, err := s.refusal(ctx, conn, device, s.want(device), most)
			if err != nil {
				return err
			}
			if refused != nil && s.limits.DropOldest {
				if refused, err = s.undroppable(ctx, conn, device, refused); err != nil {
					return err
				}
			}
			if refused == nil {
				with = append(with, device)
			}
		}
		return nil
	})
	return with, err
}

// undroppable returns refused unless there are letters that may be dropped for one of the device.
func (s *Store) undroppable(ctx context.Context, conn *sql.Conn, device string, refused error) (error, error) {
	query, args := "SELECT count(*) FROM (SELECT 1 FROM letters WHERE requeued_at IS NULL LIMIT 1)", []any(nil)
	if errors.Is(refused, ErrDeviceFull) {
		query, args = "SELECT count(*) FROM (SELECT 1 FROM letters WHERE device = ? AND requeued_at IS NULL LIMIT 1)", []any{device}
	}
	if n, err := sqlite.Number(ctx, conn, query, args...); err != nil || n > 0 {
		return nil, err
	}
	return refused, nil
}

// A DeviceUsage is how much room the letters of one device take.
type DeviceUsage struct {
	Device         string
	Letters, Bytes int64
}

// Largest returns the n devices whose letters take the most room.
func (s *Store) Largest(ctx context.Context, n int) (list []DeviceUsage, err error) {
	err = s.use(ctx, func(conn *sql.Conn) error {
		rows, err := conn.QueryContext(ctx, "SELECT device, letters, room FROM devices ORDER BY room DESC LIMIT ?", n)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var d DeviceUsage
			if err := rows.Scan(&d.Device, &d.Letters, &d.Bytes); err != nil {
				return err
			}
			list = append(list, d)
		}
		return rows.Err()
	})
	return list, err
}

// Reserve makes sure that the rollback journal's file has its room on the disk. The plugin calls it now and then: a disk
// that is full keeps it from being made.
func (s *Store) Reserve(ctx context.Context) error {
	return s.use(ctx, func(conn *sql.Conn) error {
		journal := s.path + "-journal"
		if info, err := os.Stat(journal); err == nil && info.Size() >= reserveBytes {
			return nil
		}
		// Within a transaction no other program uses the file. SQLite takes one that begins with zeros for no journal.
		return sqlite.Write(ctx, conn, func() error { return extend(journal, reserveBytes) })
	})
}

// extend makes a file as long as size, with zeros behind what there is.
func extend(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	for at := info.Size(); at < size; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		if err != nil {
			return errors.Join(err, f.Truncate(info.Size()))
		}
		at += int64(n)
	}
	return f.Sync()
}

// Reclaim gives room back to the disk that dropped letters have left in the file. The plugin calls it where the disk, not
// MaxBytes, is what bounds the letters.
func (s *Store) Reclaim(ctx context.Context) { s.reclaim(ctx) }

// reclaim gives free pages back to the disk, in steps between which others have their turn.
func (s *Store) reclaim(ctx context.Context) {
	for pages := 1024; ; {
		left := int64(0)
		err := s.use(ctx, func(conn *sql.Conn) (err error) {
			// One page a row.
			rows, err := conn.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", pages))
			if err != nil {
				return err
			}
			for rows.Next() { //nolint:revive // to have them freed
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return err
			}
			left, err = sqlite.Number(ctx, conn, "PRAGMA freelist_count")
			return err
		})
		switch {
		case sqlite.IsFull(err) && pages > 32:
			pages = 32 // what the reserve has room for
		case err != nil || left == 0:
			return // what is free is used again
		}
	}
}
