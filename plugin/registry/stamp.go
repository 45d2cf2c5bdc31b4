package registry

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// A fileStamp changes with whatever any program does to a file: SQLite's own change counter does not, where a program
// copies another database over this one. The zero value is that of no file. Comparable.
type fileStamp struct {
	device, inode uint64
	size          int64
	mtime, ctime  int64 // nanoseconds since 1970; the ctime cannot be set by a program
	regular       bool  // neither a directory nor a pipe nor a device
}

// errNoFile is the error of a path at which SQLite would wait, as for who writes to a pipe, or fail without a reason.
var errNoFile = errors.New("not a regular file; restore the database, or correct the path")

// A stamp is that of a database and of its write-ahead log.
type stamp struct{ database, wal fileStamp }

// stampOf looks at the database at path, through symbolic links. A missing log is no error.
func stampOf(path string) (s stamp, err error) {
	if s.database, err = fileStampOf(path); err != nil {
		return stamp{}, err
	}
	if !s.database.regular {
		return stamp{}, errNoFile
	}
	if s.wal, err = fileStampOf(path + "-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stamp{}, err
	}
	return s, nil
}

func fileStampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	s := fileStamp{size: info.Size(), mtime: info.ModTime().UnixNano(), regular: info.Mode().IsRegular()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		s.device, s.inode, s.ctime = uint64(stat.Dev), stat.Ino, stat.Ctim.Nano()
	}
	return s, nil
}

// sameFile reports whether two stamps are of one file.
func (s fileStamp) sameFile(o fileStamp) bool { return s.device == o.device && s.inode == o.inode }
