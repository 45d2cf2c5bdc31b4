package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

func (f *fixture) inspect() ([]recovered, Inspection) {
	f.t.Helper()
	var all []recovered
	found, err := Inspect(f.Dir, func(pos Position, a *Accepted, o Outcome) {
		all = append(all, recovered{pos, clone(a), o})
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all, found
}

// files is every file of the journal with its content.
func (f *fixture) files() map[string]string {
	f.t.Helper()
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		f.t.Fatal(err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(f.Dir, e.Name()))
		if err != nil {
			f.t.Fatal(err)
		}
		files[e.Name()] = string(content)
	}
	return files
}

// TestInspect: it sees what recovery sees, while the journal is open, and changes nothing.
func TestInspect(t *testing.T) {
	f := newFixture(t)
	if _, err := Inspect(f.Dir, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a journal: %v", err)
	}
	j, _ := f.open()
	const n = 300
	for i := range n {
		if i%100 == 99 { // in the next segment
			f.close(j)
			j, _ = f.open()
		}
		pos, err := j.Append(&Accepted{
			Device: fmt.Sprintf("sensor_%03d", i%7), MessageID: [16]byte{byte(i), byte(i >> 8)}, Timestamp: epoch,
			AcceptedAt: time.Unix(epoch, int64(i)).UTC(), Topic: []byte("t"), Payload: make([]byte, 500),
		})
		if err != nil {
			t.Fatal(err)
		}
		switch i % 6 { // two thirds of each segment still wait, so none is collected
		case 0:
			j.Done(pos, Delivered)
		case 3:
			j.Done(pos, Dead)
		}
	}
	settled := func(all []recovered) (n int) {
		for _, r := range all {
			if r.outcome != Pending {
				n++
			}
		}
		return n
	}
	var seen []recovered
	for deadline := time.Now().Add(10 * time.Second); settled(seen) != n/3; seen, _ = f.inspect() {
		if time.Now().After(deadline) {
			t.Fatalf("%d outcomes", settled(seen))
		}
		time.Sleep(time.Millisecond)
	}
	f.close(j)

	before := f.files()
	seen, found := f.inspect()
	if !reflect.DeepEqual(f.files(), before) {
		t.Error("files were changed")
	}
	_, all := f.open()
	if len(all) != n || !reflect.DeepEqual(inOrder(seen), inOrder(all)) {
		t.Errorf("%d messages are seen, %d recovered, or others", len(seen), len(all))
	}
	var size int64
	logs := 0
	for name, content := range before {
		if filepath.Ext(name) == logSuffix {
			logs++
			size += int64(len(content))
		} else if filepath.Ext(name) == outcomesSuffix {
			size += int64(len(content))
		}
	}
	if want := (Inspection{Segments: logs, Bytes: size}); found != want || logs < 4 {
		t.Errorf("%+v, want %+v", found, want)
	}
}

func TestInspectDamage(t *testing.T) {
	f := newFixture(t)
	j, _ := f.open()
	var positions []Position
	for i := range 3 {
		pos, err := j.Append(&Accepted{Device: "a", Timestamp: epoch, Topic: []byte("t"), Payload: []byte{byte(i)}})
		if err != nil {
			t.Fatal(err)
		}
		positions = append(positions, pos)
	}
	f.close(j)
	path := filepath.Join(f.Dir, logName(positions[0].segment()))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[positions[1].offset()+recordHeader] ^= 1
	content = append(content, "torn"...)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	seen, found := f.inspect()
	if len(seen) != 2 || seen[0].pos != positions[0] || seen[1].pos != positions[2] || found.Damaged != 1 || found.Unreadable != 0 {
		t.Errorf("%+v, %+v", seen, found)
	}

	clear(content[:logStart])
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if seen, found := f.inspect(); len(seen) != 0 || found.Unreadable != 1 {
		t.Errorf("%+v, %+v", seen, found)
	}
}

// inOrder sorts what Inspect and Open give in different orders.
func inOrder(all []recovered) []recovered {
	slices.SortFunc(all, func(x, y recovered) int {
		return cmp.Or(cmp.Compare(x.pos, y.pos), bytes.Compare(x.message.MessageID[:], y.message.MessageID[:]))
	})
	return all
}
