package device

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

const na = notAuthorized

// TestOutcomes: one message, and what the broker says to each copy of it.
func TestOutcomes(t *testing.T) {
	replies := func(all ...reply) []reply { return all }
	repeat := func(n int, r reply) []reply { return slices.Repeat([]reply{r}, n) }
	for _, c := range []struct {
		name        string
		replies     []reply // the last one stays
		offset      int64   // of the clock, in seconds
		away        time.Duration
		neverRepeat bool
		unnoticed   bool // no subscription to notices is granted
		kind        OutcomeKind
		reason      string
		sent, ids   int // how often, and with how many ids
		repeated    bool
		least, most time.Duration
	}{
		{name: "accepted", kind: Accepted, sent: 1, ids: 1},
		{name: "accepted, without a subscriber", replies: replies(reply{code: 0x10}), kind: Accepted, sent: 1, ids: 1},
		{name: "another code", replies: replies(reply{code: 0x97}), kind: Refused, reason: "mqtt 0x97", sent: 1, ids: 1},
		{name: "refused, notice after", replies: replies(reply{code: na, notice: "disabled"}), kind: Refused, reason: "disabled", sent: 1, ids: 1},
		{name: "refused, notice before", replies: replies(reply{code: na, notice: "bad_signature", before: true}), kind: Refused, reason: "bad_signature", sent: 1, ids: 1},
		{name: "a reason of a later gateway", replies: replies(reply{code: na, notice: "new"}), kind: Refused, reason: "new", sent: 1, ids: 1},
		{name: "stale", offset: -7200, replies: replies(reply{code: na, notice: "stale"}, reply{}), kind: Accepted, sent: 2, ids: 2},
		{name: "future", offset: 7200, replies: replies(reply{code: na, notice: "future", before: true}, reply{}), kind: Accepted, sent: 2, ids: 2},
		{name: "stale, again and again", replies: replies(reply{code: na, notice: "stale"}), kind: Refused, reason: "stale", sent: 3, ids: 3},
		{name: "a replay of nothing", replies: replies(reply{code: na, notice: "replay"}), kind: Refused, reason: "replay", sent: 1, ids: 1},
		{name: "overloaded for a time", replies: append(repeat(3, reply{code: na, notice: "overloaded"}), reply{}), kind: Accepted, sent: 4, ids: 1, least: 7 * time.Second, most: 8 * time.Second},
		{name: "rate_limited until it is too old", replies: append(repeat(10, reply{code: na, notice: "rate_limited"}), reply{}), kind: Accepted, sent: 11, ids: 2, least: 5 * time.Minute, most: 6 * time.Minute},
		{name: "internal, and then refused", replies: replies(reply{code: na, notice: "internal"}, reply{code: na, notice: "disabled"}), kind: Refused, reason: "disabled", sent: 2, ids: 1, least: time.Second, most: 2 * time.Second},
		{name: "no reason", replies: replies(reply{code: na}), kind: Refused, reason: "unspecified", sent: 3, ids: 3, least: 10 * time.Second, most: 11 * time.Second},
		{name: "no reason, and no notices", unnoticed: true, replies: replies(reply{code: na}), kind: Refused, reason: "unspecified", sent: 3, ids: 3, least: 4 * time.Second, most: 5 * time.Second},
		{name: "no reason twice", replies: replies(reply{code: na}, reply{code: na}, reply{}), kind: Accepted, sent: 3, ids: 3},

		{name: "lost", replies: replies(reply{cut: true}, reply{}), kind: Accepted, sent: 2, ids: 1},
		{name: "lost, and known", replies: replies(reply{cut: true}, reply{code: na, notice: "replay"}), kind: Accepted, sent: 2, ids: 1},
		{name: "lost, and no reason", replies: replies(reply{cut: true}, reply{code: na}), kind: Refused, reason: "unspecified", sent: 4, ids: 1},
		{name: "lost, and stale", replies: replies(reply{cut: true}, reply{code: na, notice: "stale"}, reply{}), kind: Accepted, sent: 3, ids: 2, repeated: true},
		{name: "lost, and stale, never repeated", neverRepeat: true, replies: replies(reply{cut: true}, reply{code: na, notice: "stale"}), kind: Unknown, reason: "stale", sent: 2, ids: 1},
		{name: "lost, and away for a time", away: 200 * time.Second, replies: replies(reply{cut: true}, reply{}), kind: Accepted, sent: 2, ids: 1, least: 200 * time.Second},
		{name: "lost, and away for too long", away: 271 * time.Second, replies: replies(reply{cut: true}, reply{}), kind: Accepted, sent: 2, ids: 2, repeated: true, least: 270 * time.Second},
		{name: "lost, and away for too long, never repeated", neverRepeat: true, away: 271 * time.Second, replies: replies(reply{cut: true}), kind: Unknown, sent: 1, ids: 1},
		{name: "lost, then overloaded, and too old", replies: slices.Concat(replies(reply{cut: true}), repeat(10, reply{code: na, notice: "overloaded"}), replies(reply{})), kind: Accepted, sent: 12, ids: 2, repeated: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBroker{}
				b.reply = func(n int, p published) reply {
					if len(c.replies) == 0 {
						return reply{}
					}
					r := c.replies[min(n, len(c.replies)-1)]
					if r.cut && c.away > 0 {
						b.setDown(true)
						time.AfterFunc(c.away, func() { b.setDown(false) })
					}
					return r
				}
				if c.unnoticed {
					b.suback = 0x87
				}
				d := open(t, b, Options{NeverRepeat: c.neverRepeat, Now: func() time.Time { return time.Now().Add(time.Duration(c.offset) * time.Second) }})
				must(t, d.Start())
				begin := time.Now()
				o := outcome(t, publish(t, d, `{"a": 1.0}`))
				took := time.Since(begin)
				got := b.all()
				ids := map[string]string{}
				for i, p := range got {
					if text, known := ids[p.id]; known && text != p.text {
						t.Errorf("the same id with other bytes: %s, %s", text, p.text)
					}
					ids[p.id] = p.text
					if i > 0 && p.id == got[i-1].id && p.conn == got[i-1].conn && len(c.replies) > i && c.replies[i-1].cut {
						t.Error("sent again over the same connection")
					}
				}
				want := Outcome{Delivery: 1, Kind: c.kind, Reason: c.reason, MessageID: got[len(got)-1].id, Sent: c.sent, MayBeRepeated: c.repeated}
				if o != want || len(got) != c.sent || len(ids) != c.ids {
					t.Errorf("%+v, want %+v; %d copies with %d ids, want %d and %d", o, want, len(got), len(ids), c.sent, c.ids)
				}
				if last := got[len(got)-1]; c.offset != 0 && (last.timestamp-last.at.Unix()) != 0 {
					t.Errorf("the clock is still wrong by %d s", last.timestamp-last.at.Unix())
				}
				if took < c.least || c.most > 0 && took > c.most {
					t.Errorf("it took %v, want %v to %v", took, c.least, c.most)
				}
				must(t, d.Close())
				if n := len(d.store.queue); n != 0 {
					t.Errorf("%d messages are left", n)
				}
			})
		})
	}
}

// TestWindow: at most 16 messages are without an acknowledgement, or as many as the broker takes; in order, over connections too.
func TestWindow(t *testing.T) {
	for _, most := range []uint16{0, 3, 100} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := 16
				b := &fakeBroker{reply: func(n int, p published) reply { return reply{silent: p.conn == 1} }}
				if most > 0 {
					want = min(want, int(most))
					b.connack = func(c *packets.Connack) { c.Properties.ReceiveMaximum = &most }
				}
				d := open(t, b, Options{})
				var deliveries []*Delivery
				for i := range 40 {
					deliveries = append(deliveries, publish(t, d, fmt.Sprint(i)))
				}
				must(t, d.Start())
				synctest.Wait()
				first := b.all()
				if len(first) != want {
					t.Errorf("%d messages without an acknowledgement, want %d", len(first), want)
				}
				b.cut()
				for _, delivery := range deliveries {
					if o := outcome(t, delivery); o.Kind != Accepted || o.MayBeRepeated {
						t.Errorf("%+v", o)
					}
				}
				again := b.all()[len(first):]
				for i, p := range again {
					if p.payload != fmt.Sprint(i) || i < len(first) && p.text != first[i].text {
						t.Fatalf("message %d of the second connection is %s", i, p.text)
					}
				}
				if len(again) != 40 {
					t.Errorf("%d messages over the second connection", len(again))
				}
				must(t, d.Close())
			})
		})
	}
}

// TestHeld: while a message waits because the gateway is overloaded, nothing else is sent.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusals := 0
		b := &fakeBroker{reply: func(n int, p published) reply {
			if p.payload == `"held"` && refusals < 4 {
				refusals++
				return reply{code: na, notice: "overloaded"}
			}
			return reply{}
		}}
		d := open(t, b, Options{})
		must(t, d.Start())
		held := publish(t, d, `"held"`)
		synctest.Wait()
		next := publish(t, d, `"next"`)
		if o := outcome(t, held); o.Kind != Accepted || o.Sent != 5 {
			t.Errorf("%+v", o)
		}
		outcome(t, next)
		var order []string
		for _, p := range b.all() {
			order = append(order, p.payload)
		}
		if want := append(slices.Repeat([]string{`"held"`}, 5), `"next"`); !slices.Equal(order, want) {
			t.Errorf("sent: %q", order)
		}
		must(t, d.Close())
	})
}

// TestReconnecting: the pauses between two attempts are a second, doubled each time up to a minute, less up to a half.
func TestReconnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{down: true}
		d := open(t, b, Options{})
		must(t, d.Start())
		time.Sleep(10 * time.Minute)
		b.mu.Lock()
		dials := slices.Clone(b.dials)
		b.mu.Unlock()
		delay := time.Second
		for i := 1; i < len(dials); i++ {
			if pause := dials[i].Sub(dials[i-1]); pause > delay || pause <= delay/2 {
				t.Errorf("pause %d is %v, want %v less up to a half", i, pause, delay)
			}
			delay = min(2*delay, time.Minute)
		}
		if len(dials) < 14 || len(dials) > 30 {
			t.Errorf("%d attempts", len(dials))
		}
		b.setDown(false)
		delivery := publish(t, d, "1")
		outcome(t, delivery)
		b.cut()
		begin := time.Now()
		outcome(t, publish(t, d, "2"))
		if took := time.Since(begin); took > time.Second {
			t.Errorf("after a good connection the pause was %v", took)
		}
		must(t, d.Close())
	})
}

// TestSilentBroker: a connection over which nothing comes back ends by the keep-alive, and the message is sent again.
func TestSilentBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{suback: 0x01}
		d := open(t, b, Options{})
		hung := make(chan struct{})
		b.reply = func(n int, p published) reply {
			if n == 0 {
				<-hung // and reads nothing more
			}
			return reply{}
		}
		must(t, d.Start())
		begin := time.Now()
		o := outcome(t, publish(t, d, "1"))
		if took := time.Since(begin); o.Sent != 2 || took > 3*keepAlive*time.Second {
			t.Errorf("%+v after %v", o, took)
		}
		close(hung)
		must(t, d.Close())
	})
}

// TestTooLargeForTheBroker: what the broker would end the connection for is not sent, and the rest is.
func TestTooLargeForTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{connack: func(c *packets.Connack) { c.Properties.MaximumPacketSize = new(uint32(1000)) }}
		d := open(t, b, Options{})
		must(t, d.Start())
		long, short := publish(t, d, `"`+strings.Repeat("x", 1000)+`"`), publish(t, d, "1")
		if o := outcome(t, long); o.Kind != Refused || o.Reason != "mqtt 0x95" || o.Sent != 0 {
			t.Errorf("%+v", o)
		}
		if o := outcome(t, short); o.Kind != Accepted {
			t.Errorf("%+v", o)
		}
		must(t, d.Close())
	})
}

// TestBurst: a gateway that takes one message a second and tells of one refusal a second refuses none for good: a refusal of which
// nothing is told, while it asks for pauses, is for the same reason.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken, told time.Time
		b := &fakeBroker{reply: func(_ int, p published) reply {
			now := time.Now()
			if now.Sub(taken) >= time.Second {
				taken = now
				return reply{}
			}
			r := reply{code: na}
			if now.Sub(told) >= time.Second {
				told, r.notice = now, "rate_limited"
			}
			return r
		}}
		d := open(t, b, Options{})
		var deliveries []*Delivery
		for i := range 16 {
			deliveries = append(deliveries, publish(t, d, fmt.Sprint(i)))
		}
		must(t, d.Start())
		for i, delivery := range deliveries {
			select {
			case <-delivery.Done():
			case <-time.After(10 * time.Minute):
				t.Fatalf("message %d has no outcome", i)
			}
			if delivery.outcome.Kind != Accepted {
				t.Errorf("message %d: %+v", i, delivery.outcome)
			}
		}
		must(t, d.Close())
	})
}
