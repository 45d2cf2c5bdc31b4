package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// A Creation is files and directories that are made together or not at all.
type Creation struct {
	made []string
}

// trusted is Trusted for the directory of what is about to be made.
func (c *Creation) trusted(path string, owner *Account) error {
	dir := filepath.Dir(path)
	if slices.Contains(c.made, dir) {
		return nil
	}
	return Trusted(dir, owner)
}

// Directory makes a directory. It must not exist.
func (c *Creation) Directory(path string, mode fs.FileMode, owner *Account) error {
	if err := c.trusted(path, owner); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	c.made = append(c.made, path)
	return errors.Join(os.Chmod(path, mode), owner.Own(path)) // whatever the umask
}

// ExistingDirectory is Directory, unless there is one, in which no other user may replace files.
func (c *Creation) ExistingDirectory(path string, mode fs.FileMode, owner *Account) error {
	err := c.Directory(path, mode, owner)
	if info, statErr := os.Stat(path); errors.Is(err, fs.ErrExist) && statErr == nil && info.IsDir() {
		return Trusted(path, owner)
	}
	return err
}

// Parents makes the directories on the way to path that are missing.
func (c *Creation) Parents(path string, mode fs.FileMode) error {
	parent := filepath.Dir(path)
	if _, err := os.Stat(parent); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := c.Parents(parent, mode); err != nil {
		return err
	}
	return c.ExistingDirectory(parent, mode, nil)
}

// File makes a file. It must not exist.
func (c *Creation) File(path string, content []byte, mode fs.FileMode, owner *Account) error {
	if err := c.trusted(path, owner); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	c.made = append(c.made, path)
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode)) // whatever the umask
	if owner != nil {
		err = errors.Join(err, f.Chown(owner.UID, owner.GID))
	}
	return errors.Join(err, f.Close())
}

// Undo removes what was made, and says so if it cannot.
func (c *Creation) Undo() error {
	var errs []error
	for _, path := range slices.Backward(c.made) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	c.made = nil
	return errors.Join(errs...)
}
