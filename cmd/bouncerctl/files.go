package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// brokerUser is who Mosquitto becomes when it is started as root.
const brokerUser = "mosquitto"

// account is an owner for files.
type account struct {
	uid, gid int
	groups   []int // further ones
}

// brokerAccount returns the account that is to own the broker's files: the user
// mosquitto if we are root and it exists, else nil, which leaves them ours.
func brokerAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(brokerUser)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up user %s: %w", brokerUser, err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("user %s has uid %q: %w", brokerUser, u.Uid, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, fmt.Errorf("user %s has gid %q: %w", brokerUser, u.Gid, err)
	}
	a := &account{uid: uid, gid: gid}
	if ids, err := u.GroupIds(); err == nil {
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				a.groups = append(a.groups, n)
			}
		}
	}
	return a, nil
}

// own gives path to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// barrier returns the first directory on the way to path that the account
// cannot enter, or path itself if it cannot read it; "" if there is none.
func (a *account) barrier(path string) string {
	if a == nil {
		return ""
	}
	var way []string
	for p := path; ; p = filepath.Dir(p) {
		way = append(way, p)
		if p == filepath.Dir(p) {
			break
		}
	}
	for _, p := range slices.Backward(way) {
		info, err := os.Stat(p)
		if err != nil {
			return p
		}
		needed := fs.FileMode(0o1)
		if !info.IsDir() {
			needed = 0o4
		}
		if !a.may(info, needed) {
			return p
		}
	}
	return ""
}

// may reports whether the account has all of the permissions needed, given as those of "other" users.
func (a *account) may(info fs.FileInfo, needed fs.FileMode) bool {
	stat := info.Sys().(*syscall.Stat_t)
	switch {
	case int(stat.Uid) == a.uid:
		needed <<= 6
	case int(stat.Gid) == a.gid || slices.Contains(a.groups, int(stat.Gid)):
		needed <<= 3
	}
	return info.Mode()&needed == needed
}

// creation is files and directories that are made together or not at all.
type creation struct {
	made []string
}

// trusted is trustedDirectory for the directory of what is about to be made.
func (c *creation) trusted(path string, owner *account) error {
	dir := filepath.Dir(path)
	if slices.Contains(c.made, dir) {
		return nil
	}
	return trustedDirectory(dir, owner)
}

// directory makes a directory. It must not exist.
func (c *creation) directory(path string, mode fs.FileMode, owner *account) error {
	if err := c.trusted(path, owner); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	c.made = append(c.made, path)
	return errors.Join(os.Chmod(path, mode), owner.own(path)) // whatever the umask
}

// existingDirectory is directory, unless there is one, in which no other user may replace files.
func (c *creation) existingDirectory(path string, mode fs.FileMode, owner *account) error {
	err := c.directory(path, mode, owner)
	if info, statErr := os.Stat(path); errors.Is(err, fs.ErrExist) && statErr == nil && info.IsDir() {
		return trustedDirectory(path, owner)
	}
	return err
}

// parents makes the directories on the way to path that are missing.
func (c *creation) parents(path string, mode fs.FileMode) error {
	parent := filepath.Dir(path)
	if _, err := os.Stat(parent); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := c.parents(parent, mode); err != nil {
		return err
	}
	return c.existingDirectory(parent, mode, nil)
}

// file makes a file. It must not exist.
func (c *creation) file(path string, content []byte, mode fs.FileMode, owner *account) error {
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
		err = errors.Join(err, f.Chown(owner.uid, owner.gid))
	}
	return errors.Join(err, f.Close())
}

// undo removes what was made, and says so if it cannot.
func (c *creation) undo() error {
	var errs []error
	for _, path := range slices.Backward(c.made) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	c.made = nil
	return errors.Join(errs...)
}
