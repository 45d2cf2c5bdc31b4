package textfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDecode(t *testing.T) {
	long := strings.Repeat("0123456789", 2000)
	for _, c := range []struct {
		name, content, want string
		err                 error
	}{
		{"plain", "secret\r\n", "secret\r\n", nil},
		{"nothing", "", "", nil},
		{"a mark alone", "\xef\xbb\xbf", "", nil},
		{"one byte", "a", "a", nil},
		{"UTF-8", "\xef\xbb\xbfsecret", "secret", nil},
		{"one mark of two", "\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa", nil},
		{"little-endian", "\xff\xfea\x00\xe4\x00\r\x00\n\x00", "aä\r\n", nil},
		{"big-endian", "\xfe\xff\x00a\x00\xe4", "aä", nil},
		{"a surrogate pair", "\xff\xfe\x3d\xd8\x00\xde", "😀", nil},
		{"a mark of UTF-16 alone", "\xff\xfe", "", nil},
		{"long", "\xef\xbb\xbf" + long, long, nil},
		{"no text", "\x00\x01\x02\x03", "\x00\x01\x02\x03", nil},
		{"UTF-32", "\xff\xfe\x00\x00a\x00\x00\x00", "", ErrUTF32},
		{"UTF-32, big-endian", "\x00\x00\xfe\xff\x00\x00\x00a", "", ErrUTF32},
		{"without a mark", "i\x00d\x00", "", ErrNoMark},
		{"without a mark, big-endian", "\x00i\x00d", "", ErrNoMark},
		{"half a character", "\xff\xfea\x00b", "", ErrBroken},
		{"half a pair", "\xff\xfe\x3d\xd8a\x00", "", ErrBroken},
	} {
		got, err := Decode([]byte(c.content))
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
		read, err := io.ReadAll(NewReader(iotest.OneByteReader(strings.NewReader(c.content))))
		switch {
		case errors.Is(c.err, ErrBroken):
			if err == nil && !strings.Contains(string(read), "\ufffd") {
				t.Errorf("%s, read: %q", c.name, read)
			}
		case string(read) != c.want || !errors.Is(err, c.err):
			t.Errorf("%s, read: %q, %v", c.name, read, err)
		}
	}
}

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, err := ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for content, want := range map[string]string{"\xef\xbb\xbfa": "a", "\xff\xfe\x00\x00": ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(path)
		if string(got) != want || (err == nil) != (want != "") || err != nil && !strings.Contains(err.Error(), path+": is UTF-32") {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
}
