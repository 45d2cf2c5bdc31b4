package device

import (
	"context"
	"fmt"
	"sync"
	"time"

	library "mosquitto-bouncer/device/go"
)

// CommandTopic is device/<id>/command, and ResultTopic where its answers go.
func (d *Device) CommandTopic() string { return "device/" + d.ID + "/command" }

// ResultTopic is device/<id>/command/result.
func (d *Device) ResultTopic() string { return d.CommandTopic() + "/result" }

// RejectedTopic is device/<id>/rejected.
func (d *Device) RejectedTopic() string { return "device/" + d.ID + "/rejected" }

// A CommandVerifier tells which commands are the gateway's, fresh and new, as the Go library for devices does. Safe for concurrent use.
type CommandVerifier struct {
	id         string
	credential *library.Credential // nil: no command is good

	mu     sync.Mutex
	memory *library.CommandMemory
}

// NewCommandVerifier returns a verifier that has taken nothing yet.
func (d *Device) NewCommandVerifier() *CommandVerifier {
	v := &CommandVerifier{id: d.ID, memory: library.NewCommandMemory(0)}
	v.credential, _ = library.Secret(d.Secret) // with a secret that everyone has, no command is good
	return v
}

// Verify checks a message that came on the command topic, and takes the command if it is good and new. Why it is refused,
// library.ReasonOf returns. One that is repeated is returned too, so that the device can answer as it did before.
func (v *CommandVerifier) Verify(message []byte, now time.Time) (library.Command, error) {
	c, err := library.VerifyCommand(v.credential, v.id, message, now)
	if err != nil {
		return c, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return c, v.memory.Take(c.ID, c.Expires).Err()
}

// Answer is the signed message that says what happened to a command: status is succeeded, failed or rejected, result one
// JSON value or empty. It goes to ResultTopic. It panics when there is no such answer, which is a mistake of the caller.
func (d *Device) Answer(id, status, result string) Message {
	payload, err := library.Answer(id, library.Status(status), []byte(result))
	if err != nil {
		panic(fmt.Sprintf("device: answering %q: %v", id, err))
	}
	return d.Sign(string(payload))
}

// Obey takes the commands that reach c from now on, until ctx ends: it verifies each, has do decide on a good one, and
// publishes the answer; a repeated one gets its first answer again. seen, if not nil, is notified of each.
func (d *Device) Obey(ctx context.Context, c Client, do func(library.Command) (status, result string), seen func(library.Command, error)) error {
	v := d.NewCommandVerifier()
	answers := make(map[string]func() Message)
	for n := 0; ; n++ {
		got, err := c.Inbox().WaitCount(ctx, d.CommandTopic(), n+1)
		if err != nil {
			return nil // ctx has ended
		}
		command, err := v.Verify(got[n].Payload, time.Now())
		if seen != nil {
			seen(command, err)
		}
		switch {
		case err == nil:
			status, result := do(command)
			answers[command.ID] = func() Message { return d.Answer(command.ID, status, result) }
		case library.ReasonOf(err) != library.Repeated:
			continue
		}
		if answer := answers[command.ID]; answer != nil {
			if _, err := c.Publish(ctx, d.ResultTopic(), 1, false, answer().Bytes); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
