package device

import (
	"context"
	"encoding/json"
	"fmt"
)

// execute gives commands to the handler, one at a time, until ctx ends. Those that still wait then are not taken: the gateway
// sends them again.
func (d *Device) execute(ctx context.Context) {
	for {
		select {
		case c := <-d.pending:
			if ctx.Err() != nil {
				return
			}
			d.take(ctx, c)
		case <-ctx.Done():
			return
		}
	}
}

// take executes a verified command, or does what a command that is not new asks for.
func (d *Device) take(ctx context.Context, c Command) {
	key, _ := parseUUID(c.ID) // VerifyCommand has read it
	d.mu.Lock()
	verdict := d.store.commands.look(key, c.Expires)
	if verdict == CommandNew && d.now() >= c.Expires { // it has waited
		verdict = CommandExpired
	}
	switch verdict {
	case CommandNew:
		// On the disk before it is executed: whatever happens then, it is not executed again.
		if err := d.store.write(true, record{Op: opCommand, ID: c.ID, At: c.Expires}); err != nil {
			d.mu.Unlock()
			d.report(fmt.Errorf("a command is not executed: %w", err))
			return
		}
		d.mu.Unlock()
		status, result := d.handle(ctx, c)
		d.answer(c.ID, status, result)
	case CommandRepeated:
		answer, answered := d.store.answered[key]
		waiting := d.answerWaits(key)
		d.mu.Unlock()
		d.refusedCommand(Repeated)
		switch {
		case waiting:
		case answered:
			d.publishAnswer(c.ID, answer)
		default: // the process that took it has ended before it had an answer
			d.answer(c.ID, Failed, "interrupted")
		}
	default:
		d.mu.Unlock()
		d.refusedCommand(Expired)
	}
}

// answerWaits reports whether an answer to the command is in the outbox. d.mu is held.
func (d *Device) answerWaits(key [16]byte) bool {
	if d.store.answers == 0 {
		return false
	}
	for _, m := range d.store.queue {
		if other, ok := parseUUID(m.command); ok && other == key {
			return true
		}
	}
	return false
}

// handle calls the handler.
func (d *Device) handle(ctx context.Context, c Command) (status Status, result any) {
	if d.OnCommand == nil {
		return Rejected, nil
	}
	defer func() {
		if r := recover(); r != nil {
			status, result = Failed, fmt.Sprint(r)
			d.report(fmt.Errorf("the command handler has panicked: %v", r))
		}
	}()
	reply, err := d.OnCommand(ctx, c)
	if err != nil {
		return Failed, err.Error()
	}
	if reply.Status != Succeeded && reply.Status != Rejected {
		reply.Status = Failed
	}
	return reply.Status, reply.Result
}

// answer puts the answer to a command into the outbox, and into the memory. A result that cannot be sent makes it failed.
func (d *Device) answer(id string, status Status, result any) {
	payload, err := d.answerPayload(id, status, result)
	if err != nil {
		d.report(fmt.Errorf("the result of a command cannot be sent: %w", err))
		payload, err = d.answerPayload(id, Failed, "the result cannot be sent: "+string(ReasonOf(err)))
	}
	if err != nil {
		d.report(err)
		return
	}
	d.publishAnswer(id, payload)
}

func (d *Device) answerPayload(id string, status Status, result any) ([]byte, error) {
	var text json.RawMessage
	if result != nil {
		var err error
		if text, err = d.encode(validText(result)); err != nil {
			return nil, err
		}
	}
	payload, err := Answer(id, status, text)
	if err == nil && d.tooLarge(payload) {
		err = errTooLarge
	}
	return payload, err
}

// validText makes a text that may not be UTF-8, as that of an error, one that JSON has.
func validText(result any) any {
	if s, ok := result.(string); ok {
		return string([]rune(s))
	}
	return result
}

func (d *Device) publishAnswer(id string, payload []byte) {
	d.mu.Lock()
	answered := record{Op: opAnswer, ID: id, Raw: payload}
	queued := record{Op: opQueue, Topic: d.config.Topics.Command + "/result", Command: id, Raw: payload}
	var err error
	if d.store.answers < maxAnswers {
		_, err = d.enqueue(queued, answered)
	} else { // it is sent when the command comes again
		err = d.store.write(true, answered)
	}
	d.mu.Unlock()
	if err != nil {
		d.report(fmt.Errorf("the answer to a command is not kept: %w", err))
	}
}

func (d *Device) refusedCommand(reason Reason) {
	d.log.Info("command refused", "reason", string(reason))
	if d.OnCommandRefused != nil {
		d.callbacks.Lock()
		defer d.callbacks.Unlock()
		d.OnCommandRefused(reason)
	}
}
