package gate

import (
	"fmt"
	"testing"
)

// kept returns the payloads of what u holds.
func kept(u *unsent) (payloads []string) {
	for _, m := range u.all() {
		payloads = append(payloads, string(m.Payload))
	}
	return payloads
}

// TestUnsent simulates rounds of the event loop of each version of the broker.
func TestUnsent(t *testing.T) {
	for _, c := range []struct {
		name string
		u    unsent
		// 'm' adds a message, '.' is a TICK, 'x' the failure of the last message.
		rounds string
		want   string // the numbers of the messages that are left
	}{
		{"2.0, the last round", unsent{}, "mm.mm.", "[2 3]"},
		{"2.0, an idle round behind it", unsent{}, "mm..", "[]"},
		{"2.0, a message after the idle round", unsent{}, "mm..m.", "[2]"},
		{"2.0, an error ends the loop before the TICK", unsent{}, "m.mm", "[1 2]"},
		{"2.0, no message", unsent{}, "...", "[]"},
		{"2.0, two listeners with the plugin", unsent{sharers: 1}, "m..m..", "[1]"},
		{"2.0, two listeners, an idle round", unsent{sharers: 1}, "m...", "[]"},
		{"2.1, the last round", unsent{publishesBeforeTick: true}, ".m.mm", "[1 2]"},
		{"2.1, an idle round behind it", unsent{publishesBeforeTick: true}, ".mm.", "[]"},
		{"one that the broker did not take", unsent{}, "mmx", "[0]"},
		{"and another one", unsent{}, "mxxm", "[1]"},
	} {
		n := 0
		for _, event := range c.rounds {
			switch event {
			case 'm':
				c.u.add(&Publish{Topic: []byte("topic"), Payload: fmt.Append(nil, n)}, nil)
				n++
			case '.':
				c.u.ticked()
			case 'x':
				c.u.removeLast()
			}
		}
		if got := fmt.Sprint(kept(&c.u)); got != c.want {
			t.Errorf("%s: %s is left, want %s", c.name, got, c.want)
		}
	}
}

// TestUnsentIsBounded: messages beyond the bound are counted, and those within it are kept.
func TestUnsentIsBounded(t *testing.T) {
	var u unsent
	large := &Publish{Payload: make([]byte, maxUnsentBytes/2)}
	for range 4 {
		u.add(large, nil)
	}
	u.removeLast()
	if len(u.messages) != 2 || u.dropped != 2 {
		t.Errorf("%d are kept, %d dropped", len(u.messages), u.dropped)
	}
	u.ticked()
	u.ticked()
	if len(u.messages) != 0 || u.dropped != 0 || cap(u.data) > keepUnsentBytes {
		t.Errorf("%d are kept, %d dropped, in %d bytes", len(u.messages), u.dropped, cap(u.data))
	}
	small := &Publish{Topic: []byte("topic"), Payload: []byte("payload")}
	if n := testing.AllocsPerRun(100, func() { u.add(small, nil); u.ticked(); u.ticked() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRelayOfManyTopics(t *testing.T) {
	r := newRelay()
	for n := range maxRelayTopics + 2 {
		topic := fmt.Append(nil, "device/", n)
		if r.takes(topic, 1) != (n > maxRelayTopics) {
			t.Errorf("topic %d is not distinguished from those before", n)
		}
		for _, qos := range []byte{2, 2, 1, 0} {
			if !r.takes(topic, qos) {
				t.Errorf("topic %d at QoS %d", n, qos)
			}
		}
	}
	if !r.takes([]byte("device/0"), 0) {
		t.Error("the first topic is forgotten")
	}
	r.ticked()
	if r.takes([]byte("device/0"), 1) {
		t.Error("after a tick")
	}
	if n := testing.AllocsPerRun(100, func() { r.takes([]byte("device/0"), 2); r.ticked() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
