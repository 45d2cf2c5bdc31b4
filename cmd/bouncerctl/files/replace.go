package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace puts content in the place of what a regular file holds; its owner and mode stay. Who reads the file meanwhile gets all of
// the old or all of the new, also after a power failure. The directory must be one in which no other user can replace the file:
// they would be given content, as the owner of what stands there by then. reader, which may be nil, can: it reads the file anyway.
func Replace(path string, content []byte, reader *Account) error {
	if err := Trusted(filepath.Dir(path), reader); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file; name the file itself", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = takeAfter(f, info)
	if err == nil {
		_, err = f.Write(content)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDirectory(filepath.Dir(path))
}

// takeAfter gives f owner and mode of another file.
func takeAfter(f *os.File, info fs.FileInfo) error {
	own := info.Sys().(*syscall.Stat_t)
	if err := f.Chown(int(own.Uid), int(own.Gid)); err != nil {
		return fmt.Errorf("%w; run bouncerctl as root or as the owner of the file", err)
	}
	return f.Chmod(info.Mode().Perm())
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
