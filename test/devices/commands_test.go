package devices

import (
	"fmt"
	"testing"
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
	scenarios(t, withHMAC, func(r *rig) {
		a := r.agent()
		a.start()
		for n := 1; n <= 3; n++ {
			id := r.post(fmt.Sprintf(`{"set":"interval","seconds":%d}`, n))
			if e := a.commanded(id); string(e.Command) != fmt.Sprintf(`{"set":"interval","seconds":%d}`, n) {
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
	scenarios(t, withHMAC, func(r *rig) {
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

// TestCommandOnce: a command that comes again, over restarts of the broker and of the agent, is executed once.
func TestCommandOnce(t *testing.T) {
	scenarios(t, withHMAC, func(r *rig) {
		a := r.agent()
		a.start()
		r.network.swallowing(true)
		r.network.cut()
		r.network.swallowing(false)
		id := r.post(`"away"`) // waits for the device
		r.ends(id, "succeeded", `{"n":1}`)

		// The broker has taken the answer, and the device does not hear so; the answer goes again.
		a.order(`{"op":"on_command","do":"answer"}`)
		r.network.swallowing(false)
		lost := r.post(`"lost"`)
		a.commanded(lost)
		r.ends(lost, "succeeded", `{"n":2}`)
		a.stop()
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
