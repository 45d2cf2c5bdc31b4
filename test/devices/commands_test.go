package devices

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"mosquitto-bouncer/test/harness/broker"
)

const commands = "/v1/devices/" + deviceID + "/commands"

// post sends a command from the backend, and returns its id.
func (r *rig) post(body string) string {
	r.Helper()
	s := r.Ask("POST", commands+"?ttl=10m", body)
	if s.Status != 202 || s.ID == "" {
		r.Fatalf("a command: %d %s", s.Status, s.Text)
	}
	return s.ID
}

// ends waits until a command is in a state, and compares the result.
func (r *rig) ends(id, state, result string) {
	r.Helper()
	if s := r.CommandState(id, state); string(s.Result) != result {
		r.Errorf("command %s: the result is %s, want %s", id, s.Result, result)
	}
}

// TestCommand: a command is executed, and its answer reaches the backend; one whose handler fails is answered so.
func TestCommand(t *testing.T) {
	scenarios(t, all, func(r *rig) {
		a := r.agent()
		a.start()
		for n := 1; n <= 3; n++ {
			id := r.post(fmt.Sprintf(`{"set":"interval","seconds":%d}`, n))
			e := a.commanded(id)
			var compact bytes.Buffer // a library may hand over a value, and write it in its own way
			if err := json.Compact(&compact, e.Command); err != nil || compact.String() != fmt.Sprintf(`{"set":"interval","seconds":%d}`, n) {
				r.Errorf("the handler got %s", e.Command)
			}
			r.ends(id, "succeeded", fmt.Sprintf(`{"n":%d}`, n))
		}
		a.order(`{"op":"on_command","do":"fail"}`)
		id := r.post(`"x"`)
		r.ends(id, "failed", `"broken"`)
		a.stop()
		r.delivered(0, true) // answers are no data
	})
}

// TestCommandInterrupted: the agent dies while it executes a command. It does not execute it again, and says that it was
// interrupted.
func TestCommandInterrupted(t *testing.T) {
	scenarios(t, all, func(r *rig) {
		a := r.agent()
		a.start()
		a.order(`{"op":"on_command","do":"die"}`)
		id := r.post(`"reboot"`)
		a.commanded(id)
		a.died()
		a = r.agent()
		a.start()
		r.ends(id, "failed", `"interrupted"`)
		a.wait("repeated", func(e event) bool { return e.Event == "command_refused" && e.Reason == "repeated" })
		next := r.post(`"next"`)
		r.ends(next, "succeeded", `{"n":1}`)
		if n := a.count(func(e event) bool { return e.Event == "command" }); n != 1 {
			r.Errorf("the handler was called %d times, want once", n)
		}
		a.stop()
	})
}

// TestCommandAway: a command that waits for the device is executed once, when the device comes back, and not again after a restart
// of either side.
func TestCommandAway(t *testing.T) {
	scenarios(t, withHMAC, func(r *rig) {
		a := r.agent()
		a.start()
		a.stop()
		id := r.post(`"away"`)
		r.kill()
		r.Must(r.Broker.Start())
		a = r.agent()
		a.start()
		r.ends(id, "succeeded", `{"n":1}`)
		a.stop()
		r.Must(r.Broker.Restart())
		a = r.agent()
		a.start()
		last := r.post(`"last"`)
		r.ends(last, "succeeded", `{"n":1}`)
		if n := a.count(func(e event) bool { return e.Event == "command" }); n != 1 {
			r.Errorf("after the restart the handler was called %d times, want once", n)
		}
		a.stop()
	})
}

// TestAnswerLost: the acknowledgement of an answer is lost. The answer is sent again, and the command is not executed again.
func TestAnswerLost(t *testing.T) {
	scenarios(t, withHMAC, func(r *rig) {
		a := r.agent()
		a.start()
		r.network.hold()
		id := r.post(`"x"`)
		a.commanded(id)
		r.network.swallowing(true)
		r.network.release()
		r.ends(id, "succeeded", `{"n":1}`)
		r.network.cut()
		r.network.swallowing(false)
		a.wait("connected again", func(e event) bool {
			return e.Event == "connected" && a.count(func(e event) bool { return e.Event == "connected" }) == 2
		})
		r.Eventually("the answer has come twice", func() bool {
			return r.Broker.Log().Count(0, broker.Contains("Received PUBLISH", "/command/result'")) == 2
		})
		next := r.post(`"next"`)
		r.ends(next, "succeeded", `{"n":2}`)
		if n := a.count(func(e event) bool { return e.Event == "command" }); n != 2 {
			r.Errorf("the handler was called %d times for 2 commands", n)
		}
		if n := r.Broker.Log().Count(0, broker.Contains("bouncer: refused ")); n != 0 {
			r.Errorf("%d messages were refused", n)
		}
		a.stop()
	})
}
