package plugin

import (
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/forward"
)

// responsePatience is how long an answer of the backend waits for room in the queue to the broker's thread, which drains
// it ten times a second at the least. The lane of the device waits with it, and the worker of the forwarder.
const responsePatience = 2 * time.Second

// answered takes the backend's answer to one message; the forwarder's goroutines call it.
func (g *Gateway) answered(a forward.Answer) {
	if g.response == "" || len(a.Body) == 0 {
		return
	}
	c := g.contexts.take(contextKey{a.Message.DeviceID, a.Message.MessageID})
	accepted := a.Message.FirstAcceptedAt
	if g.answerRules.tooOld(accepted, time.Now()) {
		g.figures.downExpired.Add(1)
		g.staleAnswers.Do(func() {
			g.log.Warn("the answer to an old message was dropped ([response] max_age); further ones are counted",
				"device", a.Message.DeviceID, "message_id", a.Message.MessageID, "accepted", accepted.UTC().Format(time.RFC3339))
		})
		return
	}
	if len(a.Body) > maxAnswerLength {
		g.figures.downDropped.Add(1)
		g.log.Warn("the backend's answer is too long for a response and was dropped",
			"device", a.Message.DeviceID, "message_id", a.Message.MessageID, "bytes", len(a.Body))
		return
	}
	if g.answerRules.wrap {
		if a.Body = wrapAnswer(a.Message.MessageID, accepted, a.Status, a.Body); len(a.Body) > maxWrappedLength {
			g.figures.downDropped.Add(1)
			g.log.Warn("the backend's answer is too long for a response and was dropped",
				"device", a.Message.DeviceID, "message_id", a.Message.MessageID, "bytes", len(a.Body))
			return
		}
	}
	p := downlink.Publish{
		Topic:       c.topic,
		Payload:     a.Body,
		QoS:         1,
		Correlation: c.correlation,
		User:        []downlink.UserProperty{{Name: "message_id", Value: a.Message.MessageID}, {Name: "status", Value: strconv.Itoa(a.Status)}},
	}
	if p.Topic == "" {
		p.Topic = strings.Replace(g.response, config.DeviceID, a.Message.DeviceID, 1)
	}
	first, err := g.answers.Push(p)
	for began := time.Now(); err != nil && !g.stopping.Load() && time.Since(began) < responsePatience; {
		g.waker.Wake()
		time.Sleep(time.Millisecond)
		first, err = g.answers.Push(p)
	}
	if err != nil {
		g.figures.downDropped.Add(1)
		g.log.Warn("a response was dropped", "device", a.Message.DeviceID, "message_id", a.Message.MessageID, "error", err)
		return
	}
	if first {
		g.waker.Wake()
	}
}

// drain hands waiting answers, commands and log lines to the broker.
func (g *Gateway) drain() {
	g.takeReload()
	g.takeRequeued()
	g.answers.Drain(g.publishDown)
	g.drainCommands()
	g.drainClears()
	g.answerQuestions()
	g.flushLog()
}
