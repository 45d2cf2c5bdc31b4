package plugin

import (
	"bytes"
	"strings"
	"sync"
	"sync/atomic"

	"mosquitto-bouncer/plugin/config"
)

// Bounds of the response contexts, together some 40 MiB.
const (
	maxContexts = 16384
	// maxDeviceContexts is how many of them one device may have: one whose messages nobody answers must leave room.
	maxDeviceContexts = 1024
	// maxCorrelation is the longest correlation data that is kept, in bytes.
	maxCorrelation = 1024
)

// A responseContext is what a device wants to find on the response to one message (MQTT 5, section 4.10).
type responseContext struct {
	correlation []byte
	topic       string // "": the usual
}

// A contextKey names a message.
type contextKey struct{ device, messageID string }

// responseContexts keeps the contexts of messages that have no answer yet. They are in memory alone: after a restart a
// response goes to the usual topic, with the message id. The oldest go first, for a message may never be answered. Safe
// for concurrent use.
type responseContexts struct {
	any atomic.Bool // whether there ever was one, so that a fleet without them never takes the lock

	mu       sync.Mutex // guards what follows; held for a few assignments
	kept     map[contextKey]responseContext
	order    []contextKey // as they came, a ring once it is full; what has been taken stays in it
	next     int
	byDevice map[string]int
	lost     uint64 // for want of room
	foreign  uint64 // response topics outside the device's own
}

// put keeps the context of a message.
func (c *responseContexts) put(key contextKey, r responseContext) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept, c.byDevice = make(map[contextKey]responseContext), make(map[string]int)
		c.any.Store(true)
	}
	_, again := c.kept[key] // of a message that could not be handed over when it came first
	switch {
	case len(r.correlation) > maxCorrelation, !again && c.byDevice[key.device] >= maxDeviceContexts:
		c.lost++
		return
	case again:
		c.kept[key] = r
		return
	}
	if len(c.order) < maxContexts {
		c.order = append(c.order, key)
	} else {
		if oldest := c.order[c.next]; c.remove(oldest) {
			c.lost++
		}
		c.order[c.next] = key
		c.next = (c.next + 1) % maxContexts
	}
	c.kept[key] = r
	c.byDevice[key.device]++
}

// take returns the context of a message and forgets it.
func (c *responseContexts) take(key contextKey) (r responseContext) {
	if !c.any.Load() {
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r = c.kept[key]
	c.remove(key)
	return r
}

func (c *responseContexts) remove(key contextKey) bool {
	if _, ok := c.kept[key]; !ok {
		return false
	}
	delete(c.kept, key)
	if c.byDevice[key.device]--; c.byDevice[key.device] == 0 {
		delete(c.byDevice, key.device)
	}
	return true
}

func (c *responseContexts) counts() (lost, foreign uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost, c.foreign
}

// keepContext keeps what p wants to find on its response, before the message is handed over: the answer may come at once.
func (g *Gateway) keepContext(p *Publish, device, messageID string) {
	if g.response == "" {
		return
	}
	r := responseContext{correlation: bytes.Clone(p.Correlation)}
	if len(p.ResponseTopic) > 0 {
		if g.isResponseTopic(p.ResponseTopic, device) {
			r.topic = string(p.ResponseTopic)
		} else {
			g.contexts.mu.Lock()
			g.contexts.foreign++
			g.contexts.mu.Unlock()
		}
	}
	if r.correlation != nil || r.topic != "" {
		g.contexts.put(contextKey{device, messageID}, r)
	}
}

// isResponseTopic reports whether a device may choose topic for its responses: its own response topic or one below, if
// that is not a gated topic or another one of the gateway's.
func (g *Gateway) isResponseTopic(topic []byte, device string) bool {
	own := strings.Replace(g.response, config.DeviceID, device, 1)
	rest, ok := strings.CutPrefix(string(topic), own)
	if !ok || rest != "" && rest[0] != '/' || len(topic) > maxCorrelation || bytes.ContainsAny(topic, "+#\x00") {
		return false
	}
	if rest == "" {
		return true
	}
	if _, gated := deviceLevel(g.gated, topic); gated {
		return false
	}
	for _, t := range g.own {
		if _, other := t.device(topic); other && !t.below {
			return false
		}
	}
	return true
}
