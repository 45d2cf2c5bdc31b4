package forward

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"
)

// socketSink is a Sink that has nothing to do with HTTP: a line for each message over a Unix socket, and a line back.
//
//	DEVICE MESSAGE_ID PAYLOAD
//	taken ANSWER | later | never REASON
type socketSink struct{ path string }

func (s socketSink) Send(ctx context.Context, b *Batch) (r Result) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", s.path)
	if err != nil {
		return Result{Meaning: Busy, Err: err}
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	m := &b.Messages[0]
	if _, err = fmt.Fprintf(c, "%s %s %s\n", m.DeviceID, m.MessageID, m.Payload); err != nil {
		return Result{Err: err}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return Result{Err: err}
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "taken":
		return Result{Meaning: Taken, Status: 1, Body: []byte(rest)}
	case "later":
		return Result{Status: 2}
	case "never":
		return Result{Meaning: Refused, Status: 3, Excerpt: rest}
	}
	return Result{Meaning: Garbled}
}

// serveLines answers each line that comes over a Unix socket.
func serveLines(t *testing.T, answer func(device, n string) string) (path string) {
	path = filepath.Join(t.TempDir(), "sink")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
					f := strings.Fields(line)
					_, _ = fmt.Fprintln(c, answer(f[0], strings.TrimLeft(f[1][24:], "0")))
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return path
}

// A sink without HTTP gets what the webhook gets: each device's messages in order, retries, dead letters, answers.
func TestSocketSink(t *testing.T) {
	var mu sync.Mutex
	tries := map[string]int{}
	taken := map[string][]string{}
	path := serveLines(t, func(device, n string) string {
		mu.Lock()
		defer mu.Unlock()
		tries[device+"/"+n]++
		switch {
		case n == "3" && tries[device+"/"+n] < 3:
			return "later"
		case n == "5" && device == "b":
			return "never too hot"
		}
		taken[device] = append(taken[device], n)
		return "taken thanks for " + n
	})
	x := start(t, Config{Sink: socketSink{path}, Concurrency: 4})
	for n := range 8 {
		for _, device := range []string{"a", "b", "c"} {
			x.enqueue(message(device, n+1))
		}
	}
	if s := x.drain(); s.Delivered != 23 || s.Dead != 1 || s.Retries != 6 || s.Down || s.Refusing {
		t.Errorf("%+v", s)
	}
	if got := x.store.Graves(); got != "b/5 refused 3 1" || x.store.Letters[0].Excerpt != "too hot" {
		t.Errorf("dead letters: %s", got)
	}
	for device, ns := range taken {
		want := []string{"1", "2", "3", "4", "5", "6", "7", "8"}
		if device == "b" {
			want = slices.Delete(want, 4, 5)
		}
		if !slices.Equal(ns, want) {
			t.Errorf("%s: %v", device, ns)
		}
	}
	for _, a := range x.answers {
		if a.Status != 1 || string(a.Body) != "thanks for "+number(a.Message) {
			t.Errorf("%s/%s: %d %q", a.Message.DeviceID, number(a.Message), a.Status, a.Body)
		}
	}
	if len(x.answers) != 23 {
		t.Errorf("%d answers", len(x.answers))
	}
}

// Without the other end of the socket nothing is lost, and Close returns.
func TestSocketSinkWithoutServer(t *testing.T) {
	x := start(t, Config{Sink: socketSink{filepath.Join(t.TempDir(), "nothing")}, Concurrency: 2})
	x.enqueue(message("a", 1))
	testkit.Eventually(t, "a failure", func() bool { return x.Stats().Retries > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := x.Close(ctx); err == nil || x.Stats().Pending != 1 || x.Stats().Dead != 0 {
		t.Errorf("%v, %+v", err, x.Stats())
	}
}
