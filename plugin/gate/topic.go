package gate

import (
	"bytes"
	"strings"
)

// A Topic is one entry of [publish] topics: an MQTT filter with exactly one '+' level, which is the device id.
type Topic struct {
	Before string // what stands before the device id, its last byte a '/', or empty
	After  string // what stands behind it, its first byte a '/', or empty
	Below  bool   // the topics below belong to it
}

// NewTopic splits a filter that plugin/config has checked.
func NewTopic(filter string) Topic {
	before, after, _ := strings.Cut(filter, "+")
	return Topic{Before: before, After: after}
}

// Device returns the device id's level of topic, and whether the filter matches topic. As in MQTT, '+' matches one
// level, an empty one too.
func (g Topic) Device(topic []byte) ([]byte, bool) {
	if g.Below {
		return g.deviceAbove(topic)
	}
	if len(topic) < len(g.Before)+len(g.After) || string(topic[:len(g.Before)]) != g.Before ||
		string(topic[len(topic)-len(g.After):]) != g.After {
		return nil, false
	}
	level := topic[len(g.Before) : len(topic)-len(g.After)]
	return level, bytes.IndexByte(level, '/') < 0
}

// Of returns the topic of a device.
func (g Topic) Of(id string) string { return g.Before + id + g.After }

// deviceAbove is Device for a filter to which the topics below belong, each by its full name: a subscription with a
// wildcard is none of them.
func (g Topic) deviceAbove(topic []byte) ([]byte, bool) {
	rest, ok := bytes.CutPrefix(topic, []byte(g.Before))
	if !ok {
		return nil, false
	}
	end := bytes.IndexByte(rest, '/')
	if end < 0 {
		end = len(rest)
	}
	level, rest := rest[:end], rest[end:]
	if !bytes.HasPrefix(rest, []byte(g.After)) {
		return nil, false
	}
	rest = rest[len(g.After):]
	return level, len(rest) == 0 || rest[0] == '/' && !bytes.ContainsAny(rest, "+#")
}

// LevelsBelow returns by how many levels topic lies below what the filter matches, and whether it does.
func (g Topic) LevelsBelow(topic []byte) (int, bool) {
	level, ok := g.Device(topic)
	if !ok || !g.Below {
		return 0, ok
	}
	return bytes.Count(topic[len(g.Before)+len(level)+len(g.After):], []byte("/")), true
}

// DeviceLevel returns the device id's level of topic by the first filter that matches it, and whether one does: whether
// topic is gated.
func DeviceLevel(gated []Topic, topic []byte) ([]byte, bool) {
	for _, g := range gated {
		if level, ok := g.Device(topic); ok {
			return level, true
		}
	}
	return nil, false
}
