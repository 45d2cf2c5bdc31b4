// Package brokerlog makes lines for the broker's log, which only the broker's thread may write to. A line is a message and
// attributes, as slog.TextHandler formats them:
//
//	refused device=sensor_001 topic=device/sensor_001/data reason=stale detail="..."
//
// The message comes first and bare, because the broker puts its own time and level in front of it, and because it is what a
// reader looks for. A value is quoted where it is empty or has a space, '=', '"', or a character that cannot be printed: no
// value that a client has chosen passes for another attribute or for a line of its own.
package brokerlog

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"time"

	"mosquitto-bouncer/plugin/mailbox"
)

// maxWaiting is how many lines may wait for the broker's thread.
const maxWaiting = 512

// Line returns a line. args are as those of slog.Logger.Info.
func Line(message string, args ...any) string {
	r := slog.NewRecord(time.Time{}, slog.LevelInfo, message, 0)
	r.Add(args...)
	return format(r, nil)
}

// format formats a record. with are what WithAttrs and WithGroup added.
func format(r slog.Record, with []func(slog.Handler) slog.Handler) string {
	var line bytes.Buffer
	line.WriteString(r.Message)
	line.WriteByte(' ')
	h := slog.Handler(slog.NewTextHandler(&line, &slog.HandlerOptions{ReplaceAttr: leaveOut}))
	for _, add := range with {
		h = add(h)
	}
	attrs := slog.NewRecord(time.Time{}, r.Level, "", 0)
	r.Attrs(func(a slog.Attr) bool { attrs.AddAttrs(a); return true })
	_ = h.Handle(context.Background(), attrs) // a buffer takes everything
	// slog takes DEL for a character that can be printed.
	return string(bytes.ReplaceAll(bytes.TrimRight(line.Bytes(), " \n"), []byte{0x7f}, []byte(`\x7f`)))
}

// leaveOut leaves out the level and the empty message of a record.
func leaveOut(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch _, isLevel := a.Value.Any().(slog.Level); {
		case a.Key == slog.LevelKey && isLevel, a.Key == slog.MessageKey && a.Value.Equal(slog.StringValue("")):
			return slog.Attr{}
		}
	}
	return a
}

// A Queue is a slog.Handler for every goroutine: lines wait in it until the broker's thread drains it. Lines beyond 512 are
// counted and dropped. Safe for concurrent use.
type Queue struct {
	lines *mailbox.Box[waiting]
	with  []func(slog.Handler) slog.Handler
}

type waiting struct {
	level slog.Level
	text  string
}

// NewQueue returns an empty queue.
func NewQueue() *Queue { return &Queue{lines: mailbox.New[waiting](maxWaiting)} }

// Enabled leaves debugging lines out: the broker's own setting is not known here.
func (q *Queue) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle is slog.Handler's. It waits for nothing.
func (q *Queue) Handle(_ context.Context, r slog.Record) error {
	q.lines.Put(waiting{r.Level, format(r, q.with)})
	return nil
}

// WithAttrs is slog.Handler's.
func (q *Queue) WithAttrs(attrs []slog.Attr) slog.Handler {
	return q.and(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup is slog.Handler's.
func (q *Queue) WithGroup(name string) slog.Handler {
	return q.and(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (q *Queue) and(add func(slog.Handler) slog.Handler) *Queue {
	return &Queue{q.lines, append(q.with[:len(q.with):len(q.with)], add)}
}

// Drain hands every waiting line to write, oldest first, and says how many were dropped. One goroutine at a time.
func (q *Queue) Drain(write func(level slog.Level, line string)) {
	if q.lines.Drain(func(l waiting) { write(l.level, l.text) }) == 0 {
		return
	}
	if dropped := q.lines.Dropped(); dropped > 0 {
		write(slog.LevelWarn, "log lines dropped, more came than the log can take count="+strconv.Itoa(dropped))
	}
}
