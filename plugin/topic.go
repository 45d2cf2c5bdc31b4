package plugin

import (
	"bytes"
	"strings"
)

// A gatedTopic is one entry of [publish] topics: an MQTT filter with exactly one '+' level, which is the device id.
type gatedTopic struct {
	before string // what stands before the device id, its last byte a '/', or empty
	after  string // what stands behind it, its first byte a '/', or empty
	below  bool   // the topics below belong to it
}

// newGatedTopic splits a filter that plugin/config has checked.
func newGatedTopic(filter string) gatedTopic {
	before, after, _ := strings.Cut(filter, "+")
	return gatedTopic{before: before, after: after}
}

// device returns the device id's level of topic, and whether the filter matches topic. As in MQTT, '+' matches one
// level, an empty one too.
func (g gatedTopic) device(topic []byte) ([]byte, bool) {
	if g.below {
		return g.deviceAbove(topic)
	}
	if len(topic) < len(g.before)+len(g.after) || string(topic[:len(g.before)]) != g.before ||
		string(topic[len(topic)-len(g.after):]) != g.after {
		return nil, false
	}
	level := topic[len(g.before) : len(topic)-len(g.after)]
	return level, bytes.IndexByte(level, '/') < 0
}

// of returns the topic of a device.
func (g gatedTopic) of(id string) string { return g.before + id + g.after }

// deviceAbove is device for a filter to which the topics below belong, each by its full name: a subscription with a
// wildcard is none of them.
func (g gatedTopic) deviceAbove(topic []byte) ([]byte, bool) {
	rest, ok := bytes.CutPrefix(topic, []byte(g.before))
	if !ok {
		return nil, false
	}
	end := bytes.IndexByte(rest, '/')
	if end < 0 {
		end = len(rest)
	}
	level, rest := rest[:end], rest[end:]
	if !bytes.HasPrefix(rest, []byte(g.after)) {
		return nil, false
	}
	rest = rest[len(g.after):]
	return level, len(rest) == 0 || rest[0] == '/' && !bytes.ContainsAny(rest, "+#")
}

// levelsBelow returns by how many levels topic lies below what the filter matches, and whether it does.
func (g gatedTopic) levelsBelow(topic []byte) (int, bool) {
	level, ok := g.device(topic)
	if !ok || !g.below {
		return 0, ok
	}
	return bytes.Count(topic[len(g.before)+len(level)+len(g.after):], []byte("/")), true
}

// deviceLevel returns the device id's level of topic by the first filter that matches it, and whether one does: whether
// topic is gated.
func deviceLevel(gated []gatedTopic, topic []byte) ([]byte, bool) {
	for _, g := range gated {
		if level, ok := g.device(topic); ok {
			return level, true
		}
	}
	return nil, false
}
