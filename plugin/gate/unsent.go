package gate

import (
	"encoding/json"
	"errors"
	"io/fs"

	"mosquitto-bouncer/plugin/mqtt"
)

// Bounds of an unsent.
const (
	maxUnsentBytes  = 32 << 20 // beyond, messages are not kept
	keepUnsentBytes = 1 << 20  // of memory between two rounds of the event loop
)

// An unsent holds copies of the accepted messages that the gateway gave to the broker and the broker has not published yet. The
// broker publishes them at the beginning of the next round of its event loop, and drops them when it is stopped before. The
// next start publishes them.
//
// The zero value is empty, and ready. It belongs to the broker's thread.
type unsent struct {
	// publishesBeforeTick: a round begins with publishing and a TICK (Mosquitto 2.1). Else a TICK is at its end.
	publishesBeforeTick bool
	// sharers is how many more instances of the plugin the broker has. Each of them gets every TICK.
	sharers int

	messages []unsentMessage
	data     []byte // topics and payloads, one after the other
	kept     bool   // the last message is the last of messages
	ticks    int    // since the last message
	dropped  int    // messages that were not kept
}

type unsentMessage struct {
	begin, topicEnd, payloadEnd int // in data
	properties                  []byte
	qos                         byte
	retain                      bool
}

// add copies a message that the broker is given to publish.
func (u *unsent) add(p *Publish, properties []byte) {
	if u.ticks > 0 {
		u.clear() // this is another round, which began with publishing
	}
	u.kept = len(u.data)+len(p.Topic)+len(p.Payload)+len(properties) <= maxUnsentBytes
	if !u.kept {
		u.dropped++
		return
	}
	begin := len(u.data)
	u.data = append(u.data, p.Topic...)
	topicEnd := len(u.data)
	u.data = append(u.data, p.Payload...)
	u.messages = append(u.messages, unsentMessage{begin, topicEnd, len(u.data), properties, p.QoS, p.Retain})
}

// removeLast removes the message that was added last: the broker did not take it.
func (u *unsent) removeLast() {
	if u.kept {
		u.messages = u.messages[:len(u.messages)-1]
		u.kept = false
	}
}

// ticked notes a TICK.
func (u *unsent) ticked() {
	if len(u.messages) == 0 && u.dropped == 0 {
		return
	}
	u.ticks++
	if u.publishesBeforeTick || u.ticks > 1+u.sharers {
		u.clear()
	}
}

func (u *unsent) clear() {
	clear(u.messages) // of properties
	u.messages, u.data, u.kept, u.ticks, u.dropped = u.messages[:0], u.data[:0], false, 0, 0
	if cap(u.data) > keepUnsentBytes {
		u.messages, u.data = nil, nil
	}
}

// savedMessage is an unsent message on disk.
type savedMessage struct {
	Topic      []byte `json:"topic"`
	Payload    []byte `json:"payload"`
	QoS        byte   `json:"qos"`
	Retain     bool   `json:"retain,omitempty"`
	Properties []byte `json:"properties,omitempty"`
}

func (u *unsent) all() []savedMessage {
	all := make([]savedMessage, len(u.messages))
	for i, m := range u.messages {
		all[i] = savedMessage{u.data[m.begin:m.topicEnd], u.data[m.topicEnd:m.payloadEnd], m.qos, m.retain, m.properties}
	}
	return all
}

// keepUnsent notes that p is given to the broker to publish. A broker that never ticks (2.0.11 with per_listener_settings) does
// not show when it has published it: then nothing is kept, so that nothing is published twice.
func (g *Gate) keepUnsent(p *Publish) {
	if g.clock.ticks == 0 {
		return
	}
	defer g.panics.Recover("keeping a message") // it has been accepted, whatever happens here
	var properties []byte
	if p.Properties != nil {
		properties = g.broker.Properties(p.Properties)
	}
	g.unsent.add(p, properties)
}

// An UnsentFile keeps unsent messages over a restart.
type UnsentFile interface {
	// Load returns what was saved last; an error that is fs.ErrNotExist: nothing.
	Load() ([]byte, error)
	// Save saves data in place of what was saved before.
	Save(data []byte) error
}

// SaveUnsent saves for the next start what the broker will not publish any more. It is called when the broker stops.
func (g *Gate) SaveUnsent(to UnsentFile) {
	u := &g.unsent
	if u.dropped > 0 {
		g.log.Warn("the broker stopped before it published accepted QoS 2 messages, too many to be kept; subscribers miss them, the backend does not", "messages", u.dropped)
	}
	if len(u.messages) == 0 {
		return
	}
	text, err := json.Marshal(u.all())
	if err == nil {
		err = to.Save(text)
	}
	if err != nil {
		g.log.Error("the broker stopped before it published accepted QoS 2 messages, and they cannot be kept; subscribers miss them, the backend does not",
			"messages", len(u.messages), "error", err)
	}
	u.clear()
}

// PublishUnsent gives the broker the messages that it had not published before it stopped, if their devices may still publish.
// It is called before any client publishes. If the process ends during the call, subscribers miss the messages: they get
// nothing twice.
func (g *Gate) PublishUnsent(from UnsentFile) {
	text, err := from.Load()
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 {
		return
	}
	var saved []savedMessage
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	err = errors.Join(err, from.Save(nil))
	if err != nil {
		g.log.Error("accepted QoS 2 messages that the broker did not publish before it stopped cannot be published now; subscribers miss them, the backend does not", "error", err)
		return
	}
	published := 0
	for _, m := range saved {
		if !g.mayPublish(m.Topic) {
			continue
		}
		err := g.broker.Publish(mqtt.Message{Topic: string(m.Topic), Payload: m.Payload, QoS: m.QoS, Retain: m.Retain, Properties: m.Properties})
		if err != nil {
			g.relayFailed(err)
			continue
		}
		published++
	}
	g.log.Info("published messages that the broker had not published before it stopped", "messages", published, "of", len(saved))
}

// mayPublish reports whether a topic is a gated one, of a device that is registered and enabled.
func (g *Gate) mayPublish(topic []byte) bool {
	level, gated := g.topics.Gated(topic)
	if !gated {
		return false
	}
	d := g.registry.Lookup(level)
	return d != nil && !d.Disabled
}
