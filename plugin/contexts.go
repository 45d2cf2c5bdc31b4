package plugin

import (
	"bytes"
	"container/list"
	"strings"
	"sync"
	"sync/atomic"

	"mosquitto-bouncer/plugin/config"
)

// Bounds of the response contexts, together some 40 MiB.
const (
	maxContexts = 16384
	// maxDeviceContexts is how many of them one device may have: one whose messages nobody answers must leave room
	// for the others'.
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
// response goes to the usual topic, with the message id. The oldest go first, the device's own or all devices', for a
// message may never be answered: a backend that takes it without a word says nothing here. Safe for concurrent use.
type responseContexts struct {
	any atomic.Bool // whether there ever was one, so that a fleet without them never takes the lock

	mu       sync.Mutex // guards what follows; held for a few assignments
	kept     map[contextKey]*keptContext
	order    list.List             // of all *keptContext, oldest first
	byDevice map[string]*list.List // the same of each device
	lost     uint64                // for want of room
	foreign  uint64                // response topics outside the device's own
}

// A keptContext is in two lists.
type keptContext struct {
	responseContext
	key          contextKey
	at, atDevice *list.Element
}

// put keeps the context of a message.
func (c *responseContexts) put(key contextKey, r responseContext) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept, c.byDevice = make(map[contextKey]*keptContext), make(map[string]*list.List)
		c.any.Store(true)
	}
	if len(r.correlation) > maxCorrelation {
		c.lost++
		return
	}
	c.remove(key) // of a message that could not be handed over when it came first
	if own := c.byDevice[key.device]; own != nil && own.Len() >= maxDeviceContexts {
		c.lose(own.Front())
	}
	if len(c.kept) >= maxContexts {
		c.lose(c.order.Front())
	}
	own := c.byDevice[key.device]
	if own == nil {
		own = list.New()
		c.byDevice[key.device] = own
	}
	k := &keptContext{responseContext: r, key: key}
	k.at, k.atDevice = c.order.PushBack(k), own.PushBack(k)
	c.kept[key] = k
}

// lose makes room.
func (c *responseContexts) lose(oldest *list.Element) {
	c.remove(oldest.Value.(*keptContext).key)
	c.lost++
}

// take returns the context of a message and forgets it.
func (c *responseContexts) take(key contextKey) (r responseContext) {
	if !c.any.Load() {
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.kept[key]; k != nil {
		r = k.responseContext
		c.remove(key)
	}
	return r
}

func (c *responseContexts) remove(key contextKey) {
	k := c.kept[key]
	if k == nil {
		return
	}
	delete(c.kept, key)
	c.order.Remove(k.at)
	own := c.byDevice[key.device]
	if own.Remove(k.atDevice); own.Len() == 0 {
		delete(c.byDevice, key.device)
	}
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
