package check

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
)

// writable finds a directory in which the broker's user cannot make files.
func (k *checker) writable(where, dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.error(where, "%s does not exist; run: install -d -o %s -g %s -m 750 %s", dir, files.BrokerUser, files.BrokerUser, output.Shell(dir))
	case err != nil:
		k.warn(where, "%v; run this as root to see whether user %s can write there", err, files.BrokerUser)
	case !info.IsDir():
		k.error(where, "%s is not a directory; correct the path", dir)
	case k.Broker == nil:
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			k.warn(where, "%s cannot be written to: %v; run this as root to see whether user %s can", dir, err, files.BrokerUser)
		}
	case !k.Broker.May(info, 0o3):
		k.error(where, "the user %s cannot write to %s, because of its mode or owner; run: chown %s: %s && chmod u+rwx %s",
			files.BrokerUser, dir, files.BrokerUser, output.Shell(dir), output.Shell(dir))
	default:
		k.readable(where, dir)
	}
}

// readable finds a file that the broker's user cannot read.
func (k *checker) readable(where, path string) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		k.error(where, "%s does not exist; make it, or correct the path", path)
		return
	}
	if k.Broker == nil {
		if err := unix.Access(path, unix.R_OK); err != nil {
			k.warn(where, "%s cannot be read: %v; run this as root to see whether user %s can", path, err, files.BrokerUser)
		}
		return
	}
	if barrier := k.Broker.Barrier(path); barrier != "" {
		cure := "chgrp " + files.BrokerUser + " " + output.Shell(barrier) + " && chmod g+r " + output.Shell(barrier)
		if barrier != path || info != nil && info.IsDir() {
			cure = "chmod o+x " + output.Shell(barrier)
		}
		k.error(where, "the user %s cannot read %s, because of the mode or owner of %s; run: %s", files.BrokerUser, path, barrier, cure)
	}
}
