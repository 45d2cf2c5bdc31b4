package downlink

import (
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/mqtt"
)

// Bounds of the responses that wait for the broker's thread.
const (
	maxResponses     = 8192
	maxResponseBytes = 32 << 20
	// MaxResponseLength is the longest body of a response, in bytes.
	MaxResponseLength = 64 << 10
	// responsePatience is how long a response waits for room in the queue to the broker's thread, which drains it ten times
	// a second at the least. The lane of the device waits with it, and the worker of the forwarder.
	responsePatience = 2 * time.Second
)

// A Response is what the backend has answered to one message.
type Response struct {
	Device    string
	MessageID string
	Accepted  time.Time // when the message was first accepted, before any requeue
	Status    int
	Body      []byte // empty: nothing is sent
}

// ResponseOptions say which responses reach a device, and in which form.
type ResponseOptions struct {
	Topic  string        // with config.DeviceID in it; "": none are sent
	MaxAge time.Duration // of the message
	Wrap   bool          // see wrap
	// Reserved reports whether a topic is one that a device may not choose for its responses although it lies below its
	// response topic: a gated one or another one of the gateway's own.
	Reserved func(topic []byte) bool
	Log      *slog.Logger
}

// Responses brings the backend's responses to the devices. Safe for concurrent use.
type Responses struct {
	options  ResponseOptions
	down     *Dispatcher
	queue    *Queue
	contexts contexts
	stopping atomic.Bool

	stale   rate.Sometimes // how often a response to an old message is worth a line
	expired atomic.Uint64
	dropped atomic.Uint64
}

// NewResponses returns Responses that leave by way of down.
func NewResponses(o ResponseOptions, down *Dispatcher) *Responses {
	return &Responses{
		options: o,
		down:    down,
		queue:   down.messages(maxResponses, maxResponseBytes),
		stale:   rate.Sometimes{Interval: time.Minute},
	}
}

// Send leaves a response for the broker's thread. It waits up to 2 s for room. Any goroutine but the broker's thread.
func (rs *Responses) Send(r Response) {
	if rs.options.Topic == "" || len(r.Body) == 0 {
		return
	}
	c := rs.contexts.take(contextKey{r.Device, r.MessageID})
	if rs.tooOld(r.Accepted, time.Now()) {
		rs.expired.Add(1)
		rs.stale.Do(func() {
			rs.options.Log.Warn("the answer to an old message was dropped ([response] max_age); further ones are counted",
				"device", r.Device, "message_id", r.MessageID, "accepted", r.Accepted.UTC().Format(time.RFC3339))
		})
		return
	}
	body := r.Body
	tooLong := len(body) > MaxResponseLength
	if !tooLong && rs.options.Wrap {
		body = wrap(r.MessageID, r.Accepted, r.Status, body)
		tooLong = len(body) > maxWrappedLength
	}
	if tooLong {
		rs.dropped.Add(1)
		rs.options.Log.Warn("the backend's answer is too long for a response and was dropped",
			"device", r.Device, "message_id", r.MessageID, "bytes", len(body))
		return
	}
	p := Publish{Message: mqtt.Message{
		Topic:       c.topic,
		Payload:     body,
		QoS:         1,
		Correlation: c.correlation,
		User:        []mqtt.UserProperty{{Name: "message_id", Value: r.MessageID}, {Name: "status", Value: strconv.Itoa(r.Status)}},
	}}
	if p.Topic == "" {
		p.Topic = rs.topicOf(r.Device)
	}
	err := rs.down.push(rs.queue, p)
	for began := time.Now(); err != nil && !rs.stopping.Load() && time.Since(began) < responsePatience; {
		rs.down.wake()
		time.Sleep(time.Millisecond)
		err = rs.down.push(rs.queue, p)
	}
	if err != nil {
		rs.dropped.Add(1)
		rs.options.Log.Warn("a response was dropped", "device", r.Device, "message_id", r.MessageID, "error", err)
	}
}

// Stop has Send wait for nothing any more: the broker's thread takes no more responses.
func (rs *Responses) Stop() { rs.stopping.Store(true) }

// tooOld reports whether the response to a message comes too late for its device.
func (rs *Responses) tooOld(accepted, now time.Time) bool {
	return now.Sub(accepted) > rs.options.MaxAge
}

func (rs *Responses) topicOf(device string) string {
	return strings.Replace(rs.options.Topic, config.DeviceID, device, 1)
}
