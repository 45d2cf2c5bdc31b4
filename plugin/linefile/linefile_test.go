package linefile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const header = "lines of a test 1\n"

// open opens the file and returns what is in it; "!" is a damaged line.
func open(t *testing.T, path string) (*File, []string) {
	t.Helper()
	var texts []string
	f, err := Open(path, header, func(text []byte) {
		if text == nil {
			text = []byte("!")
		}
		texts = append(texts, string(text))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, texts
}

func add(t *testing.T, f *File, texts ...string) {
	t.Helper()
	var lines []byte
	for _, text := range texts {
		lines = AppendLine(lines, []byte(text))
	}
	if err := f.Append(lines); err != nil {
		t.Fatal(err)
	}
}

func TestAppendReplaceAndReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, texts := open(t, path)
	if len(texts) != 0 {
		t.Fatal(texts)
	}
	add(t, f, "+a", "b c d", "+e")
	if f, texts = open(t, path); !slices.Equal(texts, []string{"+a", "b c d", "+e"}) {
		t.Fatal(texts)
	}
	if err := f.Replace(slices.Values([][]byte{[]byte("x"), []byte("y")})); err != nil {
		t.Fatal(err)
	}
	add(t, f, "z")
	info, err := os.Stat(path)
	if err != nil || info.Size() != f.Size() || info.Mode().Perm()&0o137 != 0 {
		t.Fatalf("%v %v, want %d bytes", info, err, f.Size())
	}
	if _, texts = open(t, path); !slices.Equal(texts, []string{"x", "y", "z"}) {
		t.Fatal(texts)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Error("left behind:", left)
	}
}

// A crash at any byte of an append leaves the lines before it, and a file that can be appended to.
func TestEveryCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, _ := open(t, path)
	add(t, f, "first")
	kept := f.Size()
	add(t, f, "second")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range int64(len(whole)) {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		f, texts := open(t, path)
		if want := cut >= kept; (len(texts) == 1) != want {
			t.Fatalf("cut at %d: %q", cut, texts)
		}
		add(t, f, "third")
		if _, texts = open(t, path); texts[len(texts)-1] != "third" || slices.Contains(texts, "!") {
			t.Fatalf("cut at %d, and appended to: %q", cut, texts)
		}
	}
}

// Whatever byte is damaged, no line is read as another one.
func TestEveryDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, _ := open(t, path)
	add(t, f, "first", "second")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		damaged := slices.Clone(whole)
		damaged[i] ^= 1
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		var texts []string
		f, err := Open(path, header, func(text []byte) { texts = append(texts, string(text)) })
		if i < len(header) {
			if !errors.Is(err, ErrHeader) || !strings.Contains(err.Error(), path) {
				t.Fatalf("damaged at %d: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("damaged at %d: %v", i, err)
		}
		_ = f.Close()
		for _, text := range texts {
			if text != "first" && text != "second" && text != "" {
				t.Fatalf("damaged at %d: %q", i, texts)
			}
		}
		if slices.Equal(texts, []string{"first", "second"}) {
			t.Fatalf("damaged at %d, unnoticed", i)
		}
	}
}

func TestLongLinesAreDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, _ := open(t, path)
	add(t, f, "a", strings.Repeat("x", 3*buffer), "b", strings.Repeat("y", MaxLine+1), strings.Repeat("z", MaxLine))
	if _, texts := open(t, path); len(texts) != 5 || texts[1] != "!" || texts[2] != "b" || texts[3] != "!" || len(texts[4]) != MaxLine {
		t.Errorf("%d lines", len(texts))
	}
}

func TestNoRegularFile(t *testing.T) {
	if _, err := Open(t.TempDir(), header, func([]byte) {}); err == nil {
		t.Error("a directory was opened")
	}
}
