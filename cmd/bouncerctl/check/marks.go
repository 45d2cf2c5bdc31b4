package check

import (
	"bytes"
	"os"

	"mosquitto-bouncer/cmd/bouncerctl/output"
)

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
				path, output.Shell(path))
		}
	}
}
