package downlink

import (
	"bytes"
	"container/list"
	"strings"
	"sync"
	"sync/atomic"
)

// Bounds of the response contexts, together some 40 MiB.
const (
	maxContexts = 16384
	// maxDeviceContexts is how many of them one device may have: one whose messages have no responses must leave
	// room for the others'.
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

// contexts keeps the contexts of messages that have no response yet. They are only in memory: after a restart a response
// goes to the usual topic, with the message id. The oldest go first, the device's own or all devices', for a message may
// never have a response: a backend may take it without a body. Safe for concurrent use.
type contexts struct {
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
func (c *contexts) put(key contextKey, r responseContext) {
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
func (c *contexts) lose(oldest *list.Element) {
	c.remove(oldest.Value.(*keptContext).key)
	c.lost++
}

// take returns the context of a message and forgets it.
func (c *contexts) take(key contextKey) (r responseContext) {
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

func (c *contexts) remove(key contextKey) {
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

func (c *contexts) counts() (lost, foreign uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost, c.foreign
}

// Keep notes what a device wants to find on the response to a message: correlation data and a topic, both of which may be
// empty and are copied. It is called before the message is handed over, for the response may come at once. A topic that is
// not the device's to choose is ignored and counted. Safe for concurrent use; it waits for nothing.
func (rs *Responses) Keep(device, messageID string, correlation, topic []byte) {
	if rs.options.Topic == "" {
		return
	}
	r := responseContext{correlation: bytes.Clone(correlation)}
	if len(topic) > 0 {
		if rs.mayChoose(topic, device) {
			r.topic = string(topic)
		} else {
			rs.contexts.mu.Lock()
			rs.contexts.foreign++
			rs.contexts.mu.Unlock()
		}
	}
	if r.correlation != nil || r.topic != "" {
		rs.contexts.put(contextKey{device, messageID}, r)
	}
}

// Drop forgets what Keep noted for a message, which is not accepted after all. Safe for concurrent use.
func (rs *Responses) Drop(device, messageID string) { rs.contexts.take(contextKey{device, messageID}) }

// mayChoose reports whether a device may choose topic for its responses: its own response topic or one below, if that is
// not reserved.
func (rs *Responses) mayChoose(topic []byte, device string) bool {
	rest, ok := strings.CutPrefix(string(topic), rs.topicOf(device))
	if !ok || rest != "" && rest[0] != '/' || len(topic) > maxCorrelation || bytes.ContainsAny(topic, "+#\x00") {
		return false
	}
	return rest == "" || !rs.options.Reserved(topic)
}
