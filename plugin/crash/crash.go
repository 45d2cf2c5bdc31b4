// Package crash recovers from panics: in the broker's process a panic that leaves a goroutine, or a function that C has
// called, ends the broker.
//
//	defer crash.Log(log, "retained messages")
//
// The functions that recover belong right behind defer: recover has no effect in a function that they call.
package crash

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// maxStackLines is how much of a stack is logged: the 20 innermost calls, two lines each.
const maxStackLines = 40

// Log, deferred, recovers from a panic and logs it. where says what was being done; args are attributes of the line.
func Log(log *slog.Logger, where string, args ...any) {
	if v := recover(); v != nil {
		Report(log, where, v, args...)
	}
}

// Then is Log that calls then after a panic.
func Then(log *slog.Logger, where string, then func()) {
	if v := recover(); v != nil {
		Report(log, where, v)
		then()
	}
}

// stacks says which panics are worth their stack in the log: a client that can cause one must not fill the log with it.
var stacks = rate.Sometimes{First: 3, Interval: 10 * time.Second}

// Report logs a panic that the caller has recovered from and, where there are not many, the stack that led to it, a line for
// each of its lines: of all panics together, three stacks at first, then one in 10 s. It does not panic, even if the log does.
func Report(log *slog.Logger, where string, v any, args ...any) {
	defer func() { _ = recover() }()
	log.Error("internal error, caught; please report it", append([]any{"where", where, "panic", fmt.Sprint(v)}, args...)...)
	stacks.Do(func() {
		for _, line := range stack() {
			log.Error("  " + strings.TrimSpace(line))
		}
	})
}

// stack returns the lines of the stack below the innermost panic, or of all of it where there is none.
func stack() []string {
	lines := strings.Split(strings.TrimSpace(string(debug.Stack())), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "panic(") && i+2 < len(lines) {
			lines = lines[i+2:]
			break
		}
	}
	return lines[:min(len(lines), maxStackLines)]
}

// A Reporter reports panics that may come again and again, since a client can cause them: three at first, then one in 10 s.
type Reporter struct {
	log    *slog.Logger
	seldom rate.Sometimes
}

// NewReporter returns a Reporter.
func NewReporter(log *slog.Logger) *Reporter {
	return &Reporter{log: log, seldom: rate.Sometimes{First: 3, Interval: 10 * time.Second}}
}

// Report is the function Report.
func (r *Reporter) Report(where string, v any) {
	r.seldom.Do(func() { Report(r.log, where, v) })
}

// Recover, deferred, recovers from a panic and reports it.
func (r *Reporter) Recover(where string) {
	if v := recover(); v != nil {
		r.Report(where, v)
	}
}
