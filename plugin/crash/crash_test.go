package crash

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
)

func logger() (*slog.Logger, *bytes.Buffer) {
	logged := new(bytes.Buffer)
	return slog.New(slog.NewTextHandler(logged, nil)), logged
}

func faulty() { panic("oops") }

func TestLog(t *testing.T) {
	log, logged := logger()
	func() {
		defer Log(log, "tests", "device", "d1")
		faulty()
	}()
	first, stack, _ := strings.Cut(logged.String(), "\n")
	if !strings.Contains(first, `msg="internal error, caught; please report it" where=tests panic=oops device=d1`) {
		t.Error(first)
	}
	// The innermost call comes first, a line of the log for each line of the stack.
	if frame, _, _ := strings.Cut(stack, "\n"); !strings.Contains(frame, "crash.faulty") {
		t.Error(stack)
	}
	if lines := strings.Count(stack, "\n"); lines < 4 || lines > maxStackLines {
		t.Errorf("%d lines of stack:\n%s", lines, stack)
	}
	logged.Reset()
	func() { defer Log(log, "tests") }()
	if logged.Len() > 0 {
		t.Errorf("without a panic: %s", logged)
	}
}

func TestVariants(t *testing.T) {
	log, logged := logger()
	then := false
	func() {
		defer Then(log, "tests", func() { then = true })
		faulty()
	}()
	if !then || !strings.Contains(logged.String(), "panic=oops") {
		t.Errorf("%v %s", then, logged)
	}
	then = false
	func() { defer Then(log, "tests", func() { then = true }) }()
	if then {
		t.Error("without a panic")
	}
}

// A log that panics itself is survived.
func TestFaultyLog(t *testing.T) {
	func() {
		defer Log(slog.New(faultyHandler{}), "tests")
		faulty()
	}()
}

type faultyHandler struct{ slog.Handler }

func (faultyHandler) Enabled(context.Context, slog.Level) bool { panic("the log") }

// However often a client causes a panic, the log gets few stacks.
func TestFewStacks(t *testing.T) {
	log, logged := logger()
	const panics = 1000
	for range panics {
		func() {
			defer Log(log, "tests")
			faulty()
		}()
	}
	if n := strings.Count(logged.String(), "internal error, caught"); n != panics {
		t.Errorf("%d panics are named", n)
	}
	if n := strings.Count(logged.String(), "\n") - panics; n > 4*maxStackLines {
		t.Errorf("%d lines of stacks", n)
	}
}

// TestReporter: of panics that come again and again the first ones are reported.
func TestReporter(t *testing.T) {
	log, logged := logger()
	r := NewReporter(log)
	for range 10 {
		func() {
			defer r.Recover("callback")
			faulty()
		}()
	}
	if n := strings.Count(logged.String(), `msg="internal error, caught; please report it" where=callback panic=oops`); n != 3 {
		t.Errorf("%d reports", n)
	}
	logged.Reset()
	func() { defer NewReporter(log).Recover("callback") }()
	if logged.Len() > 0 {
		t.Errorf("without a panic: %s", logged)
	}
}
