package journal

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/smalldisk"
)

// TestDiskFullOfMessages: a disk that the journal itself has filled does not stay full once the messages are settled,
// again and again.
func TestDiskFullOfMessages(t *testing.T) {
	disk := smalldisk.Mount(t, "size=2m")
	if disk == "" {
		return
	}
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
