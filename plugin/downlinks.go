package plugin

import (
	"fmt"
	"slices"
	"strings"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/gate"
)

// startResponses makes the way to the broker's thread, and what brings responses to the devices.
func (g *Gateway) startResponses(c *config.Config) {
	g.down = downlink.NewDispatcher(g.host, g.waker.Wake, g.log)
	g.responses = downlink.NewResponses(downlink.ResponseOptions{
		Topic: c.Response.Topic, MaxAge: c.Response.MaxAge, Wrap: c.Response.Wrap, Log: g.log,
		Reserved: func(topic []byte) bool {
			if _, gated := gate.DeviceLevel(g.gated, topic); gated {
				return true
			}
			return slices.ContainsFunc(g.own, func(own gate.Topic) bool {
				_, matches := own.Device(topic)
				return matches && !own.Below
			})
		},
	}, g.down)
}

// answered takes the backend's answer to one message; the forwarder's goroutines call it.
func (g *Gateway) answered(a forward.Answer) {
	g.responses.Send(downlink.Response{
		Device: a.Message.DeviceID, MessageID: a.Message.MessageID, Accepted: a.Message.FirstAcceptedAt, Status: a.Status, Body: a.Body,
	})
}

// startCommands has commands sent to devices. Their answers are accepted from then on.
func (g *Gateway) startCommands(c *config.Config) error {
	cs, err := downlink.StartCommands(downlink.CommandOptions{
		StateDir: c.StateDir, Topic: c.Command.Topic, Registry: g.registry, Journal: g.outbox.Journal(), Changed: g.auditCommand, Log: g.log,
	}, g.down)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("state_dir"), err)
	}
	g.commands, g.results = cs, resultTopic(c)
	g.rotated.Store(cs)
	g.checks = append(g.checks, cs.Health)
	g.gated = append(g.gated, g.results)
	return nil
}

// auditCommand records what has become of a command. Any goroutine.
func (g *Gateway) auditCommand(c command.Command) {
	g.audit.Add(audit.Record{Event: audit.Command, Device: c.Device, MessageID: c.ID, Change: string(c.State)})
}

// resultTopic is where devices answer to commands.
func resultTopic(c *config.Config) gate.Topic {
	return gate.NewTopic(strings.Replace(c.Command.ResultTopic(), config.DeviceID, "+", 1))
}

// restoreAnswers brings devices' answers to commands from the journal into the store of commands.
func (g *Gateway) restoreAnswers() {
	var answers []downlink.Answer
	for _, a := range g.outbox.Answers() {
		answers = append(answers, downlink.Answer(a))
	}
	if g.commands == nil {
		downlink.DropAnswers(answers, g.outbox.Journal(), g.log)
		return
	}
	g.commands.Restore(answers)
}

// drain takes what other goroutines have left for the broker's thread.
func (g *Gateway) drain() {
	g.takeReload()
	g.outbox.Requeue()
	g.down.Drain()
	g.answerQuestions()
	g.flushLog()
}
