package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

// oldMessage is the i-th message of testdata/format1, which format 1's program wrote, as far as it says.
func oldMessage(i int) *Accepted {
	device := []string{"sensor_001", "AA:BB:CC:DD:EE:FF", "gerät"}[i%3]
	a := &Accepted{
		Device: device, MessageID: [16]byte{0x55, 15: byte(i)}, Tag: [16]byte{0xa0, 1, 2, 3, 4, 5, 6, byte(i)}, QoS: UnknownQoS,
		Timestamp: 1760000000 + int64(i), AcceptedAt: time.Unix(1760000001, int64(i)).UTC(),
		Topic:   []byte("device/" + device + []string{"/data", "/alarm", "/data"}[i%3]),
		Payload: make([]byte, 100*i), Client: uint32(1000 + i), Legacy: true,
	}
	for k := range a.Payload {
		a.Payload[k] = byte('a' + (i+k)%26)
	}
	if i%4 == 0 {
		a.QoS = 2
	}
	if i%5 == 0 {
		a.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	}
	if i == 3 {
		a.AcceptedAt = time.Time{}
	}
	return a
}

func oldOutcome(i int) Outcome {
	switch {
	case i%3 == 0:
		return Delivered
	case i%3 == 1 && i > 20:
		return Dead
	}
	return Pending
}

func same(a, b recovered) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// A journal of format 1 is read whole; what it does not say is marked as unknown, and not taken for false.
func TestUpgradeFromFormat1(t *testing.T) {
	f := newFixture(t)
	f.now = func() time.Time { return time.Unix(1760000100, 0) }
	if err := os.CopyFS(f.Dir, os.DirFS("testdata/format1")); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	if len(got) != 30 {
		t.Fatalf("%d messages", len(got))
	}
	for i, r := range got {
		if want := (recovered{r.pos, *oldMessage(i), oldOutcome(i)}); !same(r, want) {
			t.Errorf("message %d:\n got %+v\nwant %+v", i, r, want)
		}
		var a Accepted
		if _, err := j.Read(r.pos, &a, nil); errors.Is(err, ErrNotFound) && r.outcome != Pending {
			continue // its id is what is left
		} else if err != nil || !same(recovered{r.pos, a, r.outcome}, r) {
			t.Errorf("message %d read: %+v, %v", i, a, err)
		}
	}
	if s := j.Stats(); s.Accepted != 30 || s.Delivered != 10 || s.Dead != 3 || s.Pending != 17 || s.Damaged+s.Unreadable != 0 {
		t.Errorf("%+v", s)
	}
	if b, err := LoadState(f.Dir, "forgotten"); err != nil || !bytes.Contains(b, []byte("1759990000")) {
		t.Errorf("%s, %v", b, err)
	}
	// The one accepted next, and what happens to the old ones, is there at the next start.
	new := appendAll(t, j, 100, 101)
	j.Done(got[1].pos, Delivered)
	f.close(j)
	_, again := f.open()
	got[1].outcome = Delivered
	wantRecovered(t, again, append(got, new...))
}
