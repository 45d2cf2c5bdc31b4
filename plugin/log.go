package plugin

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"mosquitto-bouncer/plugin/gate"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/sampler"
)

// maxQueuedLines is how many log lines may wait for the broker's thread.
const maxQueuedLines = 512

// A logQueue is a slog.Handler for every goroutine: lines wait in it until the broker's thread, which alone may write to
// the broker's log, hands them over. Lines beyond maxQueuedLines are counted and dropped. Safe for concurrent use.
type logQueue struct {
	lines *logLines
	attrs []byte // what With added, already formatted
	group string
}

type logLines struct {
	any     atomic.Bool // whether there are any, so that draining none costs one load
	mu      sync.Mutex  // guards what follows; never held over a call into the broker
	waiting []logLine
	dropped int
}

type logLine struct {
	level slog.Level
	text  string
}

func newLogQueue() *logQueue { return &logQueue{lines: new(logLines)} }

// Enabled keeps debugging lines out: the broker's own setting is not known here.
func (q *logQueue) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (q *logQueue) Handle(_ context.Context, r slog.Record) error {
	line := append([]byte(r.Message), q.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		line = appendAttr(line, q.group, a)
		return true
	})
	q.lines.mu.Lock()
	defer q.lines.mu.Unlock()
	q.lines.any.Store(true)
	if len(q.lines.waiting) >= maxQueuedLines {
		q.lines.dropped++
		return nil
	}
	q.lines.waiting = append(q.lines.waiting, logLine{r.Level, string(line)})
	return nil
}

func (q *logQueue) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *q
	with.attrs = bytes.Clone(q.attrs)
	for _, a := range attrs {
		with.attrs = appendAttr(with.attrs, q.group, a)
	}
	return &with
}

func (q *logQueue) WithGroup(name string) slog.Handler {
	with := *q
	with.group = q.group + name + "."
	return &with
}

// drain hands every waiting line to write, oldest first.
func (q *logQueue) drain(write func(level slog.Level, line string)) {
	if !q.lines.any.Load() {
		return
	}
	q.lines.mu.Lock()
	lines, dropped := q.lines.waiting, q.lines.dropped
	q.lines.waiting, q.lines.dropped = nil, 0
	q.lines.any.Store(false)
	q.lines.mu.Unlock()
	for _, l := range lines {
		write(l.level, l.text)
	}
	if dropped > 0 {
		write(slog.LevelWarn, "log lines dropped, more came than the log can take count="+strconv.Itoa(dropped))
	}
}

// appendAttr appends " key=value"; a value is quoted unless it is made of letters, digits and ._:/+#-[]@ alone, so that
// no value can pass for another one or begin a line of its own.
func appendAttr(line []byte, group string, a slog.Attr) []byte {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		for _, member := range value.Group() {
			line = appendAttr(line, group+a.Key+".", member)
		}
		return line
	}
	line = append(line, ' ')
	line = append(line, group...)
	line = append(line, a.Key...)
	line = append(line, '=')
	if value.Kind() == slog.KindAny {
		return appendValue(line, []byte(fmt.Sprint(value.Any())))
	}
	return appendValue(line, []byte(value.String()))
}

func appendValue(line, value []byte) []byte {
	plain := len(value) > 0
	for _, c := range value {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', bytes.IndexByte([]byte("._:/+#-[]@{}"), c) >= 0:
		default:
			plain = false
		}
	}
	if plain {
		return append(line, value...)
	}
	return strconv.AppendQuote(line, string(value))
}

// A refusalLog writes one line for each refusal, as far as the sampler allows it. Broker's thread only.
type refusalLog struct {
	sampler *sampler.Sampler
	line    []byte
}

// refusedLine is what the sampler calls the lines of refusals.
const refusedLine = "refused"

// refused writes the line of one refusal. Identity, client id, topic and message id are the publisher's own words: quoted
// where they need it, and cut where they are long.
func (l *refusalLog) refused(now time.Time, p *gate.Publish, messageID []byte, reason gate.Reason, detail error, write func(slog.Level, string)) {
	who := p.Identity
	if len(who) == 0 {
		who = p.ClientID
	}
	if !l.sampler.Allow(now, who, refusedLine, false) {
		return
	}
	reportLeftOut(l.sampler, now, write)
	line := append(l.line[:0], "refused device="...)
	line = appendValue(line, cut(p.Identity, 64))
	line = append(line, " topic="...)
	line = appendValue(line, cut(p.Topic, 128))
	line = append(line, " reason="...)
	line = append(line, reason.String()...)
	if messageID != nil {
		line = append(line, " message_id="...)
		line = appendValue(line, messageID)
	}
	line = append(line, " client="...)
	line = appendValue(line, cut(p.ClientID, 64))
	if detail != nil {
		line = append(line, " detail="...)
		line = strconv.AppendQuote(line, detail.Error())
	}
	l.line = line
	write(slog.LevelWarn, string(line))
}

// reportLeftOut says how many lines were left out, if any, at most once a second.
func reportLeftOut(s *sampler.Sampler, now time.Time, write func(slog.Level, string)) {
	if count, kinds := s.Report(now); count > 0 {
		write(slog.LevelWarn, "clients caused more lines than the log takes; lines left out count="+strconv.Itoa(count)+" of="+strconv.Quote(kinds))
	}
}

// cut returns at most the first n bytes of text.
func cut(text []byte, n int) []byte {
	if len(text) > n {
		return text[:n]
	}
	return text
}
