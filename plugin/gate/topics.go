package gate

import "bytes"

// Topics are the topics that the gateway decides on: the gated ones, on which devices publish, and its own, on which it
// publishes to devices. They do not change.
type Topics struct {
	gated    []Topic
	own      []Topic
	rejected *Topic // of notices; nil: none
	answers  *Topic // of devices' answers to commands, one of gated; nil: none
}

// A TopicConfig names topics. Each is a filter with one '+', which is the device's id; "": there is no such topic.
type TopicConfig struct {
	Gated    []string // on which devices publish messages
	Answers  string   // on which devices answer to commands; gated as well
	Response string   // on which the gateway publishes, and on all topics below
	Command  string
	Rejected string
}

// NewTopics returns the topics that c names.
func NewTopics(c TopicConfig) *Topics {
	t := new(Topics)
	for _, filter := range c.Gated {
		t.gated = append(t.gated, NewTopic(filter))
	}
	if c.Answers != "" {
		answers := NewTopic(c.Answers)
		t.answers, t.gated = &answers, append(t.gated, answers)
	}
	for _, filter := range []string{c.Response, c.Command, c.Rejected} {
		if filter != "" {
			t.own = append(t.own, NewTopic(filter))
		}
	}
	if c.Response != "" {
		t.own[0].Below = true // a device may choose a topic below for single responses
	}
	if c.Rejected != "" {
		rejected := NewTopic(c.Rejected)
		t.rejected = &rejected
	}
	return t
}

// deviceLevel returns the device id's level of topic by the first of the topics that matches it, and whether one does.
func deviceLevel(topics []Topic, topic []byte) ([]byte, bool) {
	for _, t := range topics {
		if level, ok := t.Device(topic); ok {
			return level, true
		}
	}
	return nil, false
}

// Gated reports whether a topic is gated, and returns the device id's level of it.
func (t *Topics) Gated(topic []byte) (level []byte, gated bool) { return deviceLevel(t.gated, topic) }

// Own reports whether a topic is one of the gateway's own, and returns the device id's level of it.
func (t *Topics) Own(topic []byte) (level []byte, own bool) { return deviceLevel(t.own, topic) }

// Reserved reports whether a topic is gated or one of the gateway's own, except those below the response topic, which a device
// may choose for a response.
func (t *Topics) Reserved(topic []byte) bool {
	if _, gated := t.Gated(topic); gated {
		return true
	}
	for _, own := range t.own {
		if _, matches := own.Device(topic); matches && !own.Below {
			return true
		}
	}
	return false
}

// Of returns all topics of a device, except those below the response topic: first the gated ones.
func (t *Topics) Of(device string) []string {
	all := t.gatedOf(device)
	for _, topic := range t.own {
		all = append(all, topic.Of(device))
	}
	return all
}

// gatedOf returns the gated topics of a device.
func (t *Topics) gatedOf(device string) (all []string) {
	for _, topic := range t.gated {
		all = append(all, topic.Of(device))
	}
	return all
}

// All names every topic: those that begin with before and end with after, with one level between them that is a device's
// id.
func (t *Topics) All(name func(before, after string, gated bool)) {
	for _, topic := range t.gated {
		name(topic.Before, topic.After, true)
	}
	for _, topic := range t.own {
		name(topic.Before, topic.After, false)
		if topic.Below { // all topics that begin like this: Access checks the rest
			name(topic.Before, "", false)
		}
	}
}

// isAnswer reports whether a gated topic is that of devices' answers to commands.
func (t *Topics) isAnswer(topic []byte) bool {
	if t.answers == nil {
		return false
	}
	_, is := t.answers.Device(topic)
	return is
}

// isOwnOf reports whether a topic is one that the gateway publishes to for the client of p.
func (t *Topics) isOwnOf(p *Publish) bool {
	level, own := t.Own(p.Topic)
	return own && bytes.Equal(level, p.Identity)
}

// levelsBelow returns how many levels one of the gateway's own topics has below the response topic.
func (t *Topics) levelsBelow(topic []byte) int {
	for _, own := range t.own {
		if n, ok := own.LevelsBelow(topic); ok {
			return n
		}
	}
	return 0
}
