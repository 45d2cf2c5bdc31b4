package textfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestReadRegular(t *testing.T) {
	dir := t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(file, []byte("four"), 0o600), os.Symlink(file, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	unwanted := errors.New("unwanted")
	for _, c := range []struct {
		path        string
		most, flags int
		accept      func(fs.FileInfo) error
		want        error
	}{
		{path: file, most: 4},
		{path: link, most: 4},
		{path: file, most: 4, accept: func(info fs.FileInfo) error {
			if info.Mode().Perm() != 0o600 {
				return unwanted
			}
			return nil
		}},
		{path: file, most: 3, want: TooLargeError(3)},
		{path: file, most: 4, accept: func(fs.FileInfo) error { return unwanted }, want: unwanted},
		{path: link, most: 4, flags: syscall.O_NOFOLLOW, want: syscall.ELOOP},
		{path: fifo, most: 4, want: ErrNotRegular},
		{path: dir, most: 4, want: ErrNotRegular},
		{path: "/dev/zero", most: 4, want: ErrNotRegular},
		{path: filepath.Join(dir, "none"), most: 4, want: fs.ErrNotExist},
	} {
		content, err := ReadRegular(c.path, c.most, c.flags, c.accept)
		if !errors.Is(err, c.want) || err == nil && string(content) != "four" || err != nil && content != nil {
			t.Errorf("%+v: %q, %v", c, content, err)
		}
	}
}
