package subscription

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// aBroker is one device's subscriptions as Mosquitto keeps them: a list for each session, in which a place that has become
// free is used again, and which never gets shorter.
type aBroker struct {
	*Table
	t        *testing.T
	sessions map[string]*[]string // by client id
	numbers  map[string]uintptr   // of connections
	last     uintptr
	compacts bool // as Mosquitto 2.1 does
}

func newBroker(t *testing.T) *aBroker {
	return &aBroker{New(), t, map[string]*[]string{}, map[string]uintptr{}, 0, false}
}

func (b *aBroker) connect(client string) {
	b.last++
	b.numbers[client] = b.last
	if b.sessions[client] == nil {
		b.sessions[client] = new([]string)
	}
}

func (b *aBroker) connection(client string) *Connection {
	return &Connection{Number: b.numbers[client], ClientID: []byte(client), Places: len(*b.sessions[client])}
}

func (b *aBroker) subscribe(client, topic string) error {
	err := b.Add([]byte("d"), []byte(topic), 0, b.connection(client))
	if err != nil {
		return err
	}
	list, free := b.sessions[client], -1
	for i, have := range *list {
		switch {
		case have == topic:
			return nil
		case have == "" && free < 0:
			free = i
		}
	}
	if free >= 0 {
		(*list)[free] = topic
	} else {
		*list = append(*list, topic)
	}
	return nil
}

func (b *aBroker) unsubscribe(client, topic string) {
	b.Remove([]byte("d"), []byte(topic), b.connection(client))
	list := b.sessions[client]
	for i, have := range *list {
		if have != topic {
			continue
		}
		if (*list)[i] = ""; b.compacts {
			*list = slices.Delete(*list, i, i+1)
		}
		return
	}
}

func (b *aBroker) end(client string, end End) bool {
	_, ask := b.Ended([]byte("d"), []byte(client), b.numbers[client], end)
	b.numbers[client] = 0
	if end == Ends {
		b.sessions[client] = nil
	}
	return ask
}

func (b *aBroker) key(client string) SessionKey { return SessionKey{"d", b.client([]byte(client))} }

// different counts the topics that the device is subscribed to.
func (b *aBroker) different() int {
	all := map[string]bool{}
	for _, list := range b.sessions {
		if list != nil {
			for _, topic := range *list {
				all[topic] = true
			}
		}
	}
	delete(all, "")
	return len(all)
}

func (b *aBroker) want(err, want error) {
	b.t.Helper()
	if !errors.Is(err, want) {
		b.t.Errorf("got %v, want %v", err, want)
	}
}

func TestBounds(t *testing.T) {
	b := newBroker(t)
	b.connect("c")
	c := b.connection("c")
	b.want(b.Add([]byte("d"), []byte("t"), MaxLevelsBelow+1, c), ErrLevels)
	b.want(b.Add([]byte("d"), []byte(strings.Repeat("t", MaxBytes+1)), 0, c), ErrBytes)
	b.want(b.Add([]byte("d"), []byte(strings.Repeat("t", MaxBytes)), MaxLevelsBelow, c), nil)
	b.connect("other")
	b.want(b.Add([]byte("another device"), []byte("t"), 0, b.connection("other")), nil)
	if b.Len() != 2 {
		t.Errorf("%d devices are subscribed to something, want 2", b.Len())
	}
}

// TestSixteen: the seventeenth topic is refused, in whichever session; repeating one, in any session, is free; an end of a
// subscription or of a session makes room.
func TestSixteen(t *testing.T) {
	b := newBroker(t)
	b.connect("one")
	b.connect("two")
	for i := range MaxFilters / 2 {
		b.want(b.subscribe("one", fmt.Sprint("one/", i)), nil)
		b.want(b.subscribe("two", fmt.Sprint("two/", i)), nil)
	}
	b.want(b.subscribe("one", "more"), ErrFilters)
	b.want(b.subscribe("two", "more"), ErrFilters)
	b.connect("three")
	b.want(b.subscribe("three", "more"), ErrFilters)
	for i := range MaxFilters / 2 {
		for _, client := range []string{"one", "two", "three"} {
			b.want(b.subscribe(client, fmt.Sprint("one/", i)), nil)
		}
	}
	b.unsubscribe("one", "one/0")
	b.want(b.subscribe("two", "more"), ErrFilters) // the others have it still
	b.unsubscribe("two", "one/0")
	b.unsubscribe("three", "one/0")
	b.want(b.subscribe("two", "more"), nil)
	b.want(b.subscribe("two", "yet more"), ErrFilters)
	b.end("two", Stays)
	b.want(b.subscribe("one", "yet more"), ErrFilters)
	b.connect("two")
	b.want(b.subscribe("two", "yet more"), ErrFilters)
	b.end("two", Ends)
	b.want(b.subscribe("one", "yet more"), nil)
	b.end("one", Ends)
	b.end("three", Ends)
	if b.Len() != 0 {
		t.Errorf("%d devices hold something when all sessions have ended", b.Len())
	}
}

// TestNewSessionUnderTheOldName: a client that begins a new session has nothing of the old one.
func TestNewSessionUnderTheOldName(t *testing.T) {
	b := newBroker(t)
	b.connect("c")
	for i := range MaxFilters {
		b.want(b.subscribe("c", fmt.Sprint(i)), nil)
	}
	b.end("c", Stays)
	b.sessions["c"] = nil // clean start
	b.connect("c")
	for i := range MaxFilters {
		b.want(b.subscribe("c", fmt.Sprint("new/", i)), nil)
	}
	b.want(b.subscribe("c", "more"), ErrFilters)
}

// TestRestored: what the broker restored at its start counts, and repeating it is free.
func TestRestored(t *testing.T) {
	b := newBroker(t)
	restored := new([]string)
	for i := range MaxFilters - 2 {
		*restored = append(*restored, fmt.Sprint("restored/", i))
	}
	b.sessions["c"] = restored
	b.connect("c")
	b.want(b.subscribe("c", "new/0"), nil)
	b.want(b.subscribe("c", "new/1"), nil)
	b.want(b.subscribe("c", "new/2"), nil) // it might be a restored one
	b.want(b.subscribe("c", "new/3"), ErrFilters)
	b.want(b.subscribe("c", "new/0"), nil)

	again := newBroker(t)
	list := (*restored)[:MaxFilters]
	again.sessions["c"] = &list
	again.connect("c")
	again.unsubscribe("c", "restored/0")
	again.want(again.subscribe("c", "other"), nil)
	for range 2 {
		for i := range 8 {
			again.want(again.subscribe("c", fmt.Sprint("restored/", i+1)), nil)
		}
	}
}

// TestDoubtful: a session that may have ended counts until the answer has come.
func TestDoubtful(t *testing.T) {
	b := newBroker(t)
	b.connect("c")
	b.want(b.subscribe("c", "0"), nil)
	if b.end("c", MayStay) {
		t.Error("asks after a session that holds one topic")
	}
	b.connect("c")
	for i := range MaxFilters {
		b.want(b.subscribe("c", fmt.Sprint(i)), nil)
	}
	if !b.end("c", MayStay) {
		t.Fatal("does not ask after a session that holds all that there is")
	}
	b.connect("other")
	b.want(b.subscribe("other", "more"), ErrFilters)
	topic, ok := b.Doubtful(b.key("c"))
	if !ok || topic == "" {
		t.Fatalf("asks by the topic %q", topic)
	}
	b.Stays([]byte("d"), []byte("c"))
	b.Gone(b.key("c")) // too late
	b.want(b.subscribe("other", "more"), ErrFilters)
	b.connect("c")
	b.want(b.subscribe("c", "0"), nil)
	b.end("c", MayStay)
	b.Gone(b.key("c"))
	b.want(b.subscribe("other", "more"), nil)
}

// TestNoMoreThanSessions: a device cannot spread over sessions without bound.
func TestNoMoreThanSessions(t *testing.T) {
	b := newBroker(t)
	for i := range MaxSessions {
		client := fmt.Sprint("c", i)
		b.connect(client)
		b.want(b.subscribe(client, "t"), nil)
		b.end(client, Stays)
	}
	b.connect("more")
	b.want(b.subscribe("more", "t"), ErrSessions)
}

// TestSessionsThatExpire: sessions that have ended without a word are found out, and only they.
func TestSessionsThatExpire(t *testing.T) {
	b := newBroker(t)
	for i := range MaxSessions {
		client := fmt.Sprint("c", i)
		b.connect(client)
		b.want(b.subscribe(client, "t"), nil)
		if asks := b.end(client, Stays); asks != (i >= MaxSessions/8) {
			t.Errorf("session %d: asks %v", i, asks)
		}
	}
	b.connect("more")
	b.want(b.subscribe("more", "t"), ErrSessions)
	if away := b.Away([]byte("d")); len(away) != MaxSessions {
		t.Errorf("%d sessions are away, want %d", len(away), MaxSessions)
	}
	if b.Gone(b.key("c1")); !b.Doubt(b.key("c1")) || b.Doubt(b.key("more")) {
		t.Error("only a session that is away can be in doubt")
	}
	b.want(b.subscribe("more", "t"), ErrSessions)
	if topic, away := b.Doubtful(b.key("c1")); topic != "t" || !away {
		t.Errorf("asks by the topic %q, %v", topic, away)
	}
	b.Gone(b.key("c1"))
	b.want(b.subscribe("more", "t"), nil)
	if _, away := b.Doubtful(b.key("c1")); away {
		t.Error("a session that has ended is there")
	}
}

// TestAgainstBroker: whatever a device does, it is never subscribed to more than the bound, and has its room back in the
// end.
func TestAgainstBroker(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		b := newBroker(t)
		b.compacts = seed%2 == 1
		clients := []string{"a", "b", "c"}
		for step := range 400 {
			client := clients[random.IntN(len(clients))]
			topic := fmt.Sprint(random.IntN(24))
			switch connected := b.numbers[client] != 0; {
			case !connected:
				b.connect(client)
			case random.IntN(10) < 6:
				_ = b.subscribe(client, topic)
			case random.IntN(10) < 7:
				b.unsubscribe(client, topic)
			default:
				b.end(client, []End{Stays, Ends}[random.IntN(2)])
			}
			if n := b.different(); n > MaxFilters {
				t.Fatalf("seed %d, step %d: subscribed to %d topics", seed, step, n)
			}
		}
		for _, client := range clients {
			if b.numbers[client] == 0 {
				b.connect(client)
			}
			_ = b.subscribe(client, "0")
			b.end(client, Ends)
		}
		b.connect("last")
		for i := range MaxFilters {
			b.want(b.subscribe("last", fmt.Sprint("last/", i)), nil)
		}
	}
}
