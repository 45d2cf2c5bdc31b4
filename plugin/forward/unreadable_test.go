package forward

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var misreadReply = reply{status: 200, err: errors.New("cannot be read"), misread: true}

func TestUnreadableAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		x := start(t, with(func(m *Message) reply {
			if m.DeviceID == "a" && number(m) == "1" {
				tries++
				return misreadReply
			}
			return reply{status: 200}
		}))
		begun := time.Now()
		for n := range 3 {
			x.enqueue(message("a", n+1))
			x.enqueue(message("b", n+1))
		}
		s := x.drain()
		if s.Delivered != 5 || s.Dead != 1 || s.Retries != maxUnreadable-1 || s.Down || x.store.Graves() != "a/1 unreadable_answer 200 10" {
			t.Errorf("%+v %s", s, x.store.Graves())
		}
		if d := time.Since(begun); tries != maxUnreadable || d < time.Second || d > time.Minute {
			t.Errorf("%d tries in %v", tries, d)
		}
		if x.log.Count("message is dead", "reason=unreadable_answer", "status=200", `error="cannot be read"`) != 1 {
			t.Errorf("log:\n%s", x.log)
		}
	})
}

// A batch whose answer cannot be read is halved, as after other failures, until the message is alone.
func TestUnreadableAnswerInBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		x := start(t, batches(Config{Batch: 8, Linger: time.Millisecond, Concurrency: 1}, func(ms []Message) reply {
			tries++
			if strings.Contains(list(ms), "a3") {
				return misreadReply
			}
			return reply{status: 200}
		}))
		for n := range 4 {
			x.enqueue(message("a", n+1))
			x.enqueue(message("b", n+1))
		}
		s := x.drain()
		if s.Delivered != 7 || s.Dead != 1 || x.store.Graves() != "a/3 unreadable_answer 200 10" || tries != 13 {
			t.Errorf("%+v %s, %d tries", s, x.store.Graves(), tries)
		}
	})
}

// While no device gets a response, a server that does not speak HTTP may be another program on the port: no message is given up.
func TestNotHTTPWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrong := true
		x := start(t, with(func(*Message) reply {
			if wrong {
				return reply{err: errors.New("no HTTP"), misread: true}
			}
			return reply{status: 200}
		}))
		for n := range breakerThreshold {
			x.enqueue(message(string(rune('a'+n)), 1))
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if s := x.Stats(); s.Dead != 0 || !s.Down || s.Retries < 100 {
			t.Errorf("%+v", s)
		}
		wrong = false
		if s := x.drain(); s.Delivered != breakerThreshold {
			t.Errorf("%+v", s)
		}
	})
}
