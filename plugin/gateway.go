// Package plugin is the gateway: it decides on every publish that the broker presents, hands the accepted ones on, and
// brings the backend's answers back. It knows neither C nor the broker's structures; package cgo is the translation
// between the two.
package plugin

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
)

// Version is the version of this software.
const Version = "0.1.0"

// Bounds of the implementation.
const (
	// maxRemembered is how many message ids the replay memory holds; when it is full, publishes are refused as
	// overloaded. At 64 bytes an id it is 256 MiB, which a fleet reaches only if it publishes 7,000 messages a second
	// within the default tolerance.
	maxRemembered = 1 << 22
	// How many message ids are forgotten at most in one call of Message and of Tick: more than come in, so that the
	// memory keeps up, and few enough to take microseconds.
	expirePerMessage = 4
	expirePerTick    = 256
	// Answers waiting for the broker's thread.
	maxAnswers      = 8192
	maxAnswerBytes  = 32 << 20
	maxAnswerLength = 64 << 10
	// stopWithin is how long Stop waits for the backend to take what is still queued.
	stopWithin = 4 * time.Second
	// maxStackLines is how much of a stack goes to the log after a panic.
	maxStackLines = 40
)

// A Host is the broker as the gateway needs it.
type Host interface {
	// Log writes one line to the broker's log. Broker's thread only.
	Log(level slog.Level, line string)
	// Publish hands a message to the broker for whoever has subscribed to its topic. Broker's thread only.
	Publish(downlink.Publish) error
	// Wake ends the present sleep of the broker's thread. Any thread; returns at once.
	Wake()
	// WakeRounds is how many times the broker's thread must come round before a message published at the first of them
	// is on its way.
	WakeRounds() uint64
}

// A Gateway is one running instance. Start, Message, Tick and Stop are called on the broker's thread alone; none of them
// waits for anything but Start, which reads files, and Stop, which waits for a bounded time.
type Gateway struct {
	host     Host
	gated    []gatedTopic
	response string // topic with config.DeviceID in it; empty: none

	registry  *registry.Registry
	devices   devices
	seen      *replay.Set
	decision  circumstances
	forwarder *forward.Forwarder
	answers   *downlink.Queue
	waker     *downlink.Waker
	logs      *logQueue
	log       *slog.Logger
	refusals  *refusalLog
}

// Start reads the configuration and the registry and starts what runs beside the broker's thread. The error says what is
// wrong in which file, and what to do.
func Start(configFile string, host Host) (_ *Gateway, err error) {
	c, err := config.Load(configFile)
	if err != nil {
		return nil, err
	}
	logs := newLogQueue()
	g := &Gateway{
		host:     host,
		response: c.Response.Topic,
		devices:  devices{limit: rate.Inf},
		seen:     replay.New(maxRemembered, c.Publish.Tolerance),
		answers:  downlink.NewQueue(maxAnswers, maxAnswerBytes),
		logs:     logs,
		log:      slog.New(logs),
		refusals: newRefusalLog(),
	}
	defer func() {
		if err != nil {
			g.Stop()
		}
	}()
	for _, filter := range c.Publish.Topics {
		g.gated = append(g.gated, newGatedTopic(filter))
	}
	if c.Publish.Rate > 0 {
		g.devices = devices{limit: rate.Limit(c.Publish.Rate), burst: c.Publish.Burst}
	}
	g.decision = circumstances{
		tolerance: int64(c.Publish.Tolerance / time.Second),
		maxBytes:  c.Publish.MaxBytes,
		decoder:   envelope.NewDecoder(),
		seen:      g.seen,
	}
	if g.registry, err = registry.Open(c.Database, g.log); err != nil {
		return nil, err
	}
	g.waker = downlink.NewWaker(host.Wake, host.WakeRounds(), g.log)
	g.forwarder, err = forward.New(forward.Config{
		URL:         c.Backend.URL,
		Timeout:     c.Backend.Timeout,
		Concurrency: c.Backend.Concurrency,
		BearerToken: c.Backend.BearerToken,
		TLS:         c.Backend.TLS,
		Version:     Version,
	}, g.answered, g.log)
	if err != nil {
		return nil, err
	}
	g.log.Info("ready", "version", Version, "config", configFile, "devices", g.registry.Len(),
		"topics", c.Publish.Topics, "backend", c.Backend.URL)
	g.flushLog()
	return g, nil
}

// Message decides on one publish and reports whether the broker may route it. A publish to a topic that is not gated is
// none of the gateway's business and may always be routed.
func (g *Gateway) Message(p *Publish) (allowed bool) {
	defer func() {
		if v := recover(); v != nil {
			allowed = false
			g.survived("message", v)
		}
	}()
	injectFault(p)
	g.drain()
	level, gated := deviceLevel(g.gated, p.Topic)
	if !gated {
		return true
	}
	g.decision.now = time.Now()
	g.seen.Expire(g.decision.now.Unix(), expirePerMessage)
	d := g.devices.of(g.registry.Lookup(p.Identity))
	e, reason, detail := judge(p, level, d, &g.decision)
	if reason == Accepted {
		if reason = g.accept(p, d, e); reason == Accepted {
			return true
		}
	}
	var messageID []byte
	if e != nil {
		messageID = e.MessageIDText
	}
	g.refusals.refused(g.decision.now, p, messageID, reason, detail, g.host.Log)
	return false
}

// accept remembers the id of a message that has passed every check and hands the message over. If either cannot be done
// the other is undone: the device may send the message again.
func (g *Gateway) accept(p *Publish, d *device, e *envelope.Envelope) Reason {
	serial := d.registered.Serial
	switch g.seen.Insert(serial, e.MessageID, e.Timestamp, replay.Entry{Tag: [16]byte(e.MAC[:16])}) {
	case replay.Inserted:
	case replay.Full:
		return Overloaded
	default: // judge has ruled out the others
		return Internal
	}
	err := g.forwarder.Enqueue(forward.Message{
		DeviceID:   d.registered.ID,
		MessageID:  uuidText(e.MessageID),
		Timestamp:  e.Timestamp,
		AcceptedAt: g.decision.now,
		Topic:      string(p.Topic),
		Payload:    bytes.Clone(e.Payload),
	})
	if err != nil {
		g.seen.Remove(serial, e.MessageID)
		return Overloaded
	}
	return Accepted
}

// Tick does what is due when the broker's thread comes round: ten times a second on an idle broker.
func (g *Gateway) Tick() {
	defer func() {
		if v := recover(); v != nil {
			g.survived("tick", v)
		}
	}()
	now := time.Now()
	g.waker.Tick()
	g.drain()
	g.seen.Expire(now.Unix(), expirePerTick)
	g.refusals.flush(now, g.host.Log)
}

// Stop ends everything that Start began. It waits up to stopWithin for the backend to take what is still queued.
func (g *Gateway) Stop() {
	defer g.flushLog()
	defer func() {
		if v := recover(); v != nil {
			g.survived("stop", v)
		}
	}()
	if g.forwarder != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		if err := g.forwarder.Close(ctx); err != nil {
			g.log.Error("accepted messages were not delivered before the stop", "error", err)
		}
	}
	if g.waker != nil {
		g.waker.Stop()
	}
	if g.registry != nil {
		if err := g.registry.Close(); err != nil {
			g.log.Error("closing the registry", "error", err)
		}
	}
	g.log.Info("stopped")
}

// answered takes the backend's answer to one message; the forwarder's goroutines call it.
func (g *Gateway) answered(a forward.Answer) {
	if g.response == "" || len(a.Body) == 0 {
		return
	}
	if len(a.Body) > maxAnswerLength {
		g.log.Warn("the backend's answer is too long for a response and was dropped",
			"device", a.Message.DeviceID, "message_id", a.Message.MessageID, "bytes", len(a.Body))
		return
	}
	first, err := g.answers.Push(downlink.Publish{
		Topic:   strings.Replace(g.response, config.DeviceID, a.Message.DeviceID, 1),
		Payload: a.Body,
		QoS:     1,
	})
	if err != nil {
		g.log.Warn("a response was dropped", "device", a.Message.DeviceID, "message_id", a.Message.MessageID, "error", err)
		return
	}
	if first {
		g.waker.Wake()
	}
}

// drain hands waiting answers and log lines to the broker.
func (g *Gateway) drain() {
	g.answers.Drain(func(p downlink.Publish) {
		if err := g.host.Publish(p); err != nil {
			g.host.Log(slog.LevelWarn, fmt.Sprintf("the broker did not take a response topic=%s error=%q", p.Topic, err))
		}
	})
	g.flushLog()
}

func (g *Gateway) flushLog() { g.logs.drain(g.host.Log) }

// survived reports a panic that was caught on the broker's thread, with the stack a line each, since the broker cuts long
// lines.
func (g *Gateway) survived(where string, v any) {
	g.log.Error("internal error, caught; please report it", "where", where, "panic", fmt.Sprint(v))
	frames := strings.Split(string(debug.Stack()), "\n")
	for _, line := range frames[:min(len(frames), maxStackLines)] {
		g.log.Error("  " + strings.TrimSpace(line))
	}
}

// uuidText returns the text form of a UUID, in lower case (RFC 9562, section 4).
func uuidText(id [16]byte) string {
	var text [envelope.MessageIDLen]byte
	hex.Encode(text[0:8], id[0:4])
	text[8] = '-'
	hex.Encode(text[9:13], id[4:6])
	text[13] = '-'
	hex.Encode(text[14:18], id[6:8])
	text[18] = '-'
	hex.Encode(text[19:23], id[8:10])
	text[23] = '-'
	hex.Encode(text[24:36], id[10:16])
	return string(text[:])
}
