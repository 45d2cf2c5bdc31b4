// Agent is a Device that a test controls, line by line: see test/devices/doc.go.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	device "mosquitto-bouncer/device/go"
)

// maxLine bounds an order, in bytes.
const maxLine = 4 << 20

type order struct {
	Op      string
	Tag     string
	Payload json.RawMessage
	Offset  int64
	Do      string
}

type agent struct {
	device *device.Device
	offset atomic.Int64 // of the system's clock, in seconds
	do     atomic.Value // what the command handler does
	n      int          // commands in this process

	mu sync.Mutex // of the standard output
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: agent BUNDLE STATE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// fields are the members of an event.
type fields map[string]any

func (a *agent) event(name string, f fields) {
	if f == nil {
		f = fields{}
	}
	f["event"] = name
	line, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		os.Exit(1)
	}
}

func run(bundle, state string) error {
	a := new(agent)
	a.do.Store("answer")
	d, err := device.FromBundle(bundle, device.Options{
		State: state,
		Now:   func() time.Time { return time.Now().Add(time.Duration(a.offset.Load()) * time.Second) },
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	a.device = d
	d.OnCommand = a.command
	d.OnCommandRefused = func(r device.Reason) { a.event("command_refused", fields{"reason": r}) }
	d.OnOutcome = a.outcome
	d.OnResponse = func(text string) { a.event("response", fields{"text": text}) }
	d.OnConnected = func() { a.event("connected", nil) }
	d.OnDisconnected = func(error) { a.event("disconnected", nil) }
	d.OnError = func(err error) { a.event("error", fields{"error": err.Error()}) }
	a.event("ready", nil)

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		stop, err := a.obey(lines.Bytes())
		if stop || err != nil {
			return errors.Join(err, d.Close())
		}
	}
	return errors.Join(lines.Err(), d.Close())
}

func (a *agent) obey(line []byte) (stop bool, err error) {
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return true, fmt.Errorf("an order is no JSON: %w", err)
	}
	switch o.Op {
	case "start":
		return false, a.device.Start()
	case "publish":
		delivery, err := a.device.Publish(context.Background(), o.Payload)
		if err != nil {
			a.event("not_queued", fields{"tag": o.Tag, "error": err.Error()})
			return false, nil
		}
		a.event("queued", fields{"tag": o.Tag, "delivery": delivery.Number()})
		go func() {
			if outcome, err := delivery.Wait(context.Background()); err == nil {
				a.outcome(outcome)
			}
		}()
	case "clock":
		a.offset.Store(o.Offset)
	case "on_command":
		a.do.Store(o.Do)
	case "stop":
		return true, nil
	default:
		return true, fmt.Errorf("the order %q is not known", o.Op)
	}
	return false, nil
}

func (a *agent) outcome(o device.Outcome) {
	a.event("outcome", fields{
		"delivery": o.Delivery, "outcome": o.Kind, "reason": o.Reason, "message_id": o.MessageID, "sent": o.Sent, "may_be_repeated": o.MayBeRepeated,
	})
}

func (a *agent) command(_ context.Context, c device.Command) (device.Reply, error) {
	a.n++ // commands are given one at a time
	a.event("command", fields{"id": c.ID, "command": c.Body})
	switch a.do.Load() {
	case "fail":
		return device.Reply{}, errors.New("broken")
	case "die":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return device.Reply{Status: device.Succeeded, Result: map[string]int{"n": a.n}}, nil
}
