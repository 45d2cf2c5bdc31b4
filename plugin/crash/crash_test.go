package crash

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/time/rate"
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
	err := func() (err error) {
		defer Error(&err, log, "tests")
		faulty()
		return nil
	}()
	if err == nil || err.Error() != "internal error in tests: oops" {
		t.Error(err)
	}
	then = false
	err = func() (err error) {
		defer Error(&err, log, "tests")
		defer Then(log, "tests", func() { then = true })
		return nil
	}()
	if err != nil || then {
		t.Errorf("without a panic: %v %v", err, then)
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

func TestReporterLeavesOut(t *testing.T) {
	log, logged := logger()
	r := Reporter{Log: log, Limit: rate.Sometimes{First: 2}}
	for range 5 {
		r.Report("tests", "oops")
	}
	if n := strings.Count(logged.String(), "internal error, caught"); n != 2 {
		t.Errorf("%d reports, want 2", n)
	}
}
