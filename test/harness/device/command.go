package device

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/envelope"
)

// Why a device refuses a command.
var (
	ErrCommandUnreadable = errors.New("not a signed command")
	ErrCommandForged     = errors.New("forged: the signature is not the gateway's")
	ErrCommandForeign    = errors.New("for another device")
	ErrCommandExpired    = errors.New("expired")
	ErrCommandReplayed   = errors.New("replayed: this command has been taken before")
)

// CommandTopic is device/<id>/command, and ResultTopic where its answers go.
func (d *Device) CommandTopic() string { return "device/" + d.ID + "/command" }

// ResultTopic is device/<id>/command/result.
func (d *Device) ResultTopic() string { return d.CommandTopic() + "/result" }

// RejectedTopic is device/<id>/rejected.
func (d *Device) RejectedTopic() string { return "device/" + d.ID + "/rejected" }

// A Command is one that a device has found to be good.
type Command struct {
	ID      string
	Body    []byte
	Expires time.Time
}

// A CommandVerifier is the part of a device that docs/commands.md specifies: it tells which commands are the gateway's,
// fresh and new. Safe for concurrent use.
type CommandVerifier struct {
	device *Device
	mu     sync.Mutex
	taken  map[string]time.Time // until when a command's id is remembered
}

// NewCommandVerifier returns a verifier that has taken nothing yet.
func (d *Device) NewCommandVerifier() *CommandVerifier {
	return &CommandVerifier{device: d, taken: make(map[string]time.Time)}
}

// Verify checks a message that came on the command topic, in the order of docs/commands.md, and takes its id if it is
// good. The error is one of the ErrCommand values, perhaps with more. With ErrCommandReplayed the command is returned
// too, so that the device can answer as it did before.
func (v *CommandVerifier) Verify(message []byte, now time.Time) (Command, error) {
	e, err := new(envelope.Decoder).Decode(message)
	if err != nil {
		return Command{}, fmt.Errorf("%w: %v", ErrCommandUnreadable, err)
	}
	if string(e.DeviceID) != v.device.ID {
		return Command{}, ErrCommandForeign
	}
	if len(v.device.Secret) == 0 || !envelope.NewVerifier(v.device.Secret).Verify(e) { // everyone has the empty key
		return Command{}, ErrCommandForged
	}
	// What the device itself has signed has an id of another version, and is no command.
	if e.MessageID[6]>>4 != 8 {
		return Command{}, fmt.Errorf("%w: its id is no command's", ErrCommandUnreadable)
	}
	var payload struct {
		Command json.RawMessage `json:"command"`
		Expires *int64          `json:"expires"`
	}
	decoder := json.NewDecoder(bytes.NewReader(e.Payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&payload); err != nil || payload.Expires == nil || payload.Command == nil {
		return Command{}, fmt.Errorf("%w: the payload is not an object of command and expires", ErrCommandUnreadable)
	}
	c := Command{ID: string(e.MessageIDText), Body: payload.Command, Expires: time.Unix(*payload.Expires, 0)}
	if !now.Before(c.Expires) {
		return c, ErrCommandExpired
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, until := range v.taken {
		if !now.Before(until) {
			delete(v.taken, id)
		}
	}
	if _, again := v.taken[c.ID]; again {
		return c, ErrCommandReplayed
	}
	v.taken[c.ID] = c.Expires
	return c, nil
}

// Answer is the signed message that says what happened to a command: status is succeeded, failed or rejected, result one
// JSON value or empty. It goes to ResultTopic.
func (d *Device) Answer(id, status, result string) Message {
	if result == "" {
		return d.Sign(fmt.Sprintf(`{"command_id":%q,"status":%q}`, id, status))
	}
	return d.Sign(fmt.Sprintf(`{"command_id":%q,"status":%q,"result":%s}`, id, status, result))
}

// Obey takes the commands that reach c from now on, until ctx ends: it verifies each, has do decide on a good one, and
// publishes the answer; a repeated one gets its first answer again. seen, if not nil, is notified of each.
func (d *Device) Obey(ctx context.Context, c Client, do func(Command) (status, result string), seen func(Command, error)) error {
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
		case !errors.Is(err, ErrCommandReplayed):
			continue
		}
		if answer := answers[command.ID]; answer != nil {
			if _, err := c.Publish(ctx, d.ResultTopic(), 1, false, answer().Bytes); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
