package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"mosquitto-bouncer/cmd/bouncerctl/output"
)

// maxLinks is how many symbolic links a path may lead over, as for the kernel.
const maxLinks = 40

// Trusted returns an error if another user could replace what is made in dir, or lead the way there to another
// place: if a directory on the way, or a symbolic link, belongs to another user than root, whom we are and allowed, or if
// others may write to it. What is missing on the way is no error. For a user who is not root only the modes count: where
// user ids are mapped, in a container, the directories above may seem to belong to anybody.
func Trusted(dir string, allowed *Account) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	return followTrusted("/", strings.Split(path, "/"), 0, allowed)
}

// followTrusted looks at base and then at each of names below it.
func followTrusted(base string, names []string, links int, allowed *Account) error {
	if base == "/" {
		if err := trustedEntry(base, allowed); err != nil {
			return err
		}
	}
	for i, name := range names {
		if name == "" || name == "." {
			continue
		}
		path := filepath.Join(base, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if err := trustedEntry(path, allowed); err != nil {
				return err
			}
			base = path
			continue
		}
		if owner, trusted := trustedOwner(info, allowed); !trusted {
			return fmt.Errorf("the symbolic link %s belongs to %s, who may change its target; use another directory", path, owner)
		}
		if links++; links > maxLinks {
			return fmt.Errorf("%s: %w", path, syscall.ELOOP)
		}
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if filepath.IsAbs(to) {
			base = "/"
		}
		return followTrusted(base, append(strings.Split(to, "/"), names[i+1:]...), links, allowed)
	}
	return nil
}

// trustedEntry looks at one directory.
func trustedEntry(path string, allowed *Account) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory; use another path", path)
	}
	if owner, trusted := trustedOwner(info, allowed); !trusted {
		return fmt.Errorf("%s belongs to %s, who may replace what is in it; run: chown root %s, or use another directory", path, owner, output.Shell(path))
	}
	if info.Mode()&fs.ModeSticky != 0 {
		return nil // each user may replace only what is theirs
	}
	switch mode := info.Mode().Perm(); {
	case mode&0o002 != 0:
		return fmt.Errorf("every user may replace what is in %s (mode %04o); run: chmod o-w %s", path, mode, output.Shell(path))
	case mode&0o020 != 0 && os.Geteuid() == 0 && groupHasOthers(path, info):
		return fmt.Errorf("the group of %s, or a user in its access control list, may replace what is in it (mode %04o); run: chmod g-w %s", path, mode, output.Shell(path))
	}
	return nil
}

// trustedOwner reports whether what info is of belongs to root, us or allowed, and names its owner.
func trustedOwner(info fs.FileInfo, allowed *Account) (name string, trusted bool) {
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if uid == 0 || os.Geteuid() != 0 || allowed != nil && uid == allowed.UID {
		return "", true
	}
	name = "the user id " + strconv.Itoa(uid)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = "the user " + u.Username
	}
	return name, false
}

// groupHasOthers reports whether write permission of the group is another user's: unless the group is root's, and no access
// control list stands behind the mode.
func groupHasOthers(path string, info fs.FileInfo) bool {
	if info.Sys().(*syscall.Stat_t).Gid != 0 {
		return true
	}
	n, err := unix.Lgetxattr(path, "system.posix_acl_access", nil)
	return err == nil && n > 0
}
