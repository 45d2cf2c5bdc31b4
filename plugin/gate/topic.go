package gate

import (
	"bytes"
	"strings"
)

// A Topic is an MQTT filter with exactly one '+' level, which is the device id.
type Topic struct {
	Before string // what precedes the device id, its last byte a '/', or empty
	After  string // what follows it, its first byte a '/', or empty
	Below  bool   // the filter includes the topics below
}

// NewTopic splits a filter, which has one '+'.
func NewTopic(filter string) Topic {
	before, after, _ := strings.Cut(filter, "+")
	return Topic{Before: before, After: after}
}

// Device returns the device id's level of topic, and whether the filter matches topic. As in MQTT, '+' matches one
// level, an empty one too.
func (t Topic) Device(topic []byte) ([]byte, bool) {
	if t.Below {
		return t.deviceAbove(topic)
	}
	if len(topic) < len(t.Before)+len(t.After) || string(topic[:len(t.Before)]) != t.Before ||
		string(topic[len(topic)-len(t.After):]) != t.After {
		return nil, false
	}
	level := topic[len(t.Before) : len(topic)-len(t.After)]
	return level, bytes.IndexByte(level, '/') < 0
}

// Of returns the topic of a device.
func (t Topic) Of(id string) string { return t.Before + id + t.After }

// deviceAbove is Device for a filter that includes the topics below, each by its full name: a subscription with a wildcard is
// not one of them.
func (t Topic) deviceAbove(topic []byte) ([]byte, bool) {
	rest, ok := bytes.CutPrefix(topic, []byte(t.Before))
	if !ok {
		return nil, false
	}
	end := bytes.IndexByte(rest, '/')
	if end < 0 {
		end = len(rest)
	}
	level, rest := rest[:end], rest[end:]
	if !bytes.HasPrefix(rest, []byte(t.After)) {
		return nil, false
	}
	rest = rest[len(t.After):]
	return level, len(rest) == 0 || rest[0] == '/' && !bytes.ContainsAny(rest, "+#")
}

// LevelsBelow returns by how many levels topic lies below what the filter matches, and whether it does.
func (t Topic) LevelsBelow(topic []byte) (int, bool) {
	level, ok := t.Device(topic)
	if !ok || !t.Below {
		return 0, ok
	}
	return bytes.Count(topic[len(t.Before)+len(level)+len(t.After):], []byte("/")), true
}
