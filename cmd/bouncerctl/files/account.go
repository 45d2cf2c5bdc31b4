// Package files makes files and directories that belong to the broker's user, together or not at all, and only in
// directories in which no other user can replace them.
package files

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

// BrokerUser is who Mosquitto becomes when it is started as root.
const BrokerUser = "mosquitto"

// An Account is an owner for files.
type Account struct {
	UID, GID int
	groups   []int // further ones
}

// BrokerAccount returns the account that is to own the broker's files: the user
// mosquitto if we are root and it exists, else nil, which leaves them ours.
func BrokerAccount() (*Account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(BrokerUser)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up user %s: %w", BrokerUser, err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("user %s has uid %q: %w", BrokerUser, u.Uid, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, fmt.Errorf("user %s has gid %q: %w", BrokerUser, u.Gid, err)
	}
	a := &Account{UID: uid, GID: gid}
	if ids, err := u.GroupIds(); err == nil {
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				a.groups = append(a.groups, n)
			}
		}
	}
	return a, nil
}

// Own gives path to the account.
func (a *Account) Own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, a.UID, a.GID)
}

// Barrier returns the first directory on the way to path that the account
// cannot enter, or path itself if it cannot read it; "" if there is none.
func (a *Account) Barrier(path string) string {
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
		if !a.May(info, needed) {
			return p
		}
	}
	return ""
}

// May reports whether the account has all of the permissions needed, given as those of "other" users.
func (a *Account) May(info fs.FileInfo, needed fs.FileMode) bool {
	stat := info.Sys().(*syscall.Stat_t)
	switch {
	case int(stat.Uid) == a.UID:
		needed <<= 6
	case int(stat.Gid) == a.GID || slices.Contains(a.groups, int(stat.Gid)):
		needed <<= 3
	}
	return info.Mode()&needed == needed
}
