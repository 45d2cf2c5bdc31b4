package main

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"mosquitto-bouncer/plugin/registry"
)

// checkWAL finds a database in WAL mode, which the broker's user can read only if it can write its directory. It reports
// whether the database is not worth a closer look therefore.
func (k *checker) checkWAL(where, path string) (found bool) {
	if !registry.WriteAheadLogged(path) {
		return false
	}
	dir := filepath.Dir(path)
	writable := unix.Access(dir, unix.W_OK|unix.X_OK) == nil
	if info, err := os.Stat(dir); err == nil && k.broker != nil {
		writable = k.broker.may(info, 0o3)
	}
	if !writable {
		k.error(where, "%s is in WAL mode, and the user %s cannot write its directory, which reading it then needs; %s",
			path, brokerUser, registry.WALCure(path))
		return true
	}
	k.warn(where, "%s is in WAL mode: its -wal and -shm files belong to whoever opens it first, and the broker's user must be able to write them; %s",
		path, registry.WALCure(path))
	return false
}

// checkMarks finds files that the broker or its TLS library reads itself, and that begin with a byte order mark. conf is
// the mosquitto.conf; "": none.
func (k *checker) checkMarks(conf string) {
	if k.conf == nil {
		if conf != "" {
			k.checkMark(conf, conf)
		}
		return
	}
	for _, path := range k.conf.Files {
		k.checkMark(path, path)
	}
	for _, key := range []string{"cafile", "certfile", "keyfile", "acl_file", "password_file"} {
		for l := range k.conf.Lines(key) {
			k.checkMark(at(l), l.Value)
		}
	}
}

func (k *checker) checkMark(where, path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	var begin [3]byte
	n, _ := f.Read(begin[:])
	for _, mark := range []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"} {
		if bytes.HasPrefix(begin[:n], []byte(mark)) {
			k.error(where, "%s begins with a byte order mark, which the broker takes for part of the text; save it as UTF-8 without one, in an editor or with: sed -i '1s/^\\xef\\xbb\\xbf//' %s",
				path, shellQuote(path))
		}
	}
}
