package journal

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDiskFullOfMessages: a disk that the journal itself has filled does not stay full once the messages are settled,
// again and again. It mounts a tmpfs, in a mount namespace of its own.
func TestDiskFullOfMessages(t *testing.T) {
	const inside = "JOURNAL_TEST_MOUNTS"
	if os.Getenv(inside) == "" {
		child := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^TestDiskFullOfMessages$", "-test.v")
		child.Env = append(os.Environ(), inside+"=1")
		out, err := child.CombinedOutput()
		if os.Geteuid() != 0 || strings.Contains(string(out), "unshare failed") || strings.Contains(string(out), "cannot mount") {
			t.Skipf("a file system to fill can be mounted as root alone, with the right to mount: %s", out)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	defer func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) }()
	j, err := Open(Options{
		Dir: filepath.Join(disk, DirName), MaxBytes: 64 << 20, SegmentBytes: 64 << 10, Sync: 50 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		now: func() time.Time { return time.Now().Add(time.Hour) }, // nothing is kept for its age
	}, func(Position, *Accepted, Outcome) {})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	message := Accepted{Device: "d", Topic: []byte("t"), Payload: make([]byte, 300), Timestamp: time.Now().Unix()}
	for round := range 3 {
		var all []Position
		full := 0
		for deadline := time.Now().Add(20 * time.Second); full < 50; {
			pos, err := j.Append(&message)
			switch {
			case errors.Is(err, ErrFull):
				if len(all) > 2000 { // else it may still be making room
					full++
				}
				time.Sleep(10 * time.Millisecond)
			case err != nil:
				t.Fatal(err)
			default:
				if all = append(all, pos); len(all)%100 == 0 {
					time.Sleep(time.Millisecond) // the next segment is made
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: %d messages were stored; %+v", round, len(all), j.Stats())
			}
		}
		for _, pos := range all {
			j.Done(pos, Delivered)
		}
	}
}
