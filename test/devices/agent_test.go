package devices

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every single wait. It is generous because the machine may be busy, and a Device may be in the middle of a
// pause of up to 8 s between two attempts to connect.
const patience = 40 * time.Second

// An event is a line of an agent.
type event struct {
	Event         string
	Tag           string
	Delivery      json.Number
	Outcome       string
	Reason        string
	MessageID     string `json:"message_id"`
	Sent          int
	MayBeRepeated bool `json:"may_be_repeated"`
	ID            string
	Command       json.RawMessage
	Text          string
	Error         string
}

// An agent is a running one.
type agent struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	stderr bytes.Buffer
	ended  chan struct{} // closed when the process has ended, and its events were read
	err    error         // of the process

	mu      sync.Mutex
	events  []event
	bad     []string // lines that are no event
	changed chan struct{}
}

// startAgent starts an agent, and waits until it is ready.
func startAgent(t *testing.T, l library, bundle, state string) *agent {
	t.Helper()
	a := &agent{t: t, ended: make(chan struct{}), changed: make(chan struct{})}
	a.cmd = exec.Command(l.agent[0], append(l.agent[1:len(l.agent):len(l.agent)], bundle, state)...)
	a.cmd.Stderr = &a.stderr
	var out io.ReadCloser
	var err error
	if a.in, err = a.cmd.StdinPipe(); err == nil {
		out, err = a.cmd.StdoutPipe()
	}
	if err == nil {
		err = a.cmd.Start()
	}
	if err != nil {
		t.Fatalf("the agent of %s: %v", l.name, err)
	}
	go a.read(out)
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill() // it may have ended
		<-a.ended
		if t.Failed() {
			t.Logf("the agent's events: %s\nits log:\n%.20000s", a.list(), a.stderr.String())
		}
		if len(a.bad) > 0 {
			t.Errorf("lines of the agent that are no event: %q", a.bad)
		}
	})
	a.wait("ready", func(e event) bool { return e.Event == "ready" })
	return a
}

func (a *agent) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e event
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		err := decoder.Decode(&e)
		a.mu.Lock()
		if err != nil || e.Event == "" {
			a.bad = append(a.bad, lines.Text())
		} else {
			a.events = append(a.events, e)
		}
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
	}
	a.err = a.cmd.Wait()
	close(a.ended)
}

func (a *agent) all() []event {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.events[:len(a.events):len(a.events)]
}

func (a *agent) list() string {
	var b strings.Builder
	for _, e := range a.all() {
		fmt.Fprintf(&b, "\n\t%+v", e)
	}
	return b.String()
}

// wait returns the first event that matches, whether it is there or yet to come.
func (a *agent) wait(what string, match func(event) bool) event {
	a.t.Helper()
	limit := time.After(patience)
	for seen, ended := 0, false; ; {
		a.mu.Lock()
		events, changed := a.events, a.changed
		a.mu.Unlock()
		for ; seen < len(events); seen++ {
			if match(events[seen]) {
				return events[seen]
			}
		}
		if ended {
			a.t.Fatalf("the agent has ended without this event: %s: %v", what, a.err)
		}
		select {
		case <-changed:
		case <-a.ended:
			ended = true
		case <-limit:
			a.t.Fatalf("no such event within %v: %s", patience, what)
		}
	}
}

// count returns how many events match so far.
func (a *agent) count(match func(event) bool) (n int) {
	for _, e := range a.all() {
		if match(e) {
			n++
		}
	}
	return n
}

// order gives an order: the format of a JSON object.
func (a *agent) order(format string, args ...any) {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.in, format+"\n", args...); err != nil {
		a.t.Fatalf("an order: %v", err)
	}
}

// start has it connect, and waits until it has.
func (a *agent) start() {
	a.t.Helper()
	a.order(`{"op":"start"}`)
	a.wait("connected", func(e event) bool { return e.Event == "connected" })
}

// publish queues a payload, exactly as it is, and returns the delivery.
func (a *agent) publish(tag, payload string) json.Number {
	a.t.Helper()
	a.order(`{"op":"publish","tag":%q,"payload":%s}`, tag, payload)
	e := a.wait("queued "+tag, func(e event) bool { return (e.Event == "queued" || e.Event == "not_queued") && e.Tag == tag })
	if e.Event != "queued" {
		a.t.Fatalf("%s was not queued: %s", tag, e.Error)
	}
	return e.Delivery
}

// outcome waits for the outcome of a delivery.
func (a *agent) outcome(delivery json.Number) event {
	a.t.Helper()
	return a.wait("outcome of "+string(delivery), func(e event) bool { return e.Event == "outcome" && e.Delivery == delivery })
}

// accepted waits for the outcome of a delivery, which must be accepted.
func (a *agent) accepted(delivery json.Number) event {
	a.t.Helper()
	e := a.outcome(delivery)
	if e.Outcome != "accepted" || e.Reason != "" {
		a.t.Errorf("delivery %s: %+v, want accepted", delivery, e)
	}
	return e
}

// commanded waits until the handler is called with a command.
func (a *agent) commanded(id string) event {
	a.t.Helper()
	return a.wait("command "+id, func(e event) bool { return e.Event == "command" && strings.EqualFold(e.ID, id) })
}

// kill ends it as SIGKILL does.
func (a *agent) kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	a.died()
}

// died waits until SIGKILL has ended it.
func (a *agent) died() {
	a.t.Helper()
	a.waitEnd()
	var exit *exec.ExitError
	if !errors.As(a.err, &exit) || exit.ExitCode() != -1 {
		a.t.Errorf("the agent was to be killed: %v", a.err)
	}
}

// stop closes the Device in order.
func (a *agent) stop() {
	a.t.Helper()
	a.order(`{"op":"stop"}`)
	a.waitEnd()
	if a.err != nil {
		a.t.Errorf("the agent: %v", a.err)
	}
}

func (a *agent) waitEnd() {
	a.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(patience):
		a.t.Fatalf("the agent does not end")
	}
}
