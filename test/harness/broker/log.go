package broker

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Log holds the output of a broker, over all its runs, line by line. Safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	lines   []string
	changed chan struct{} // nil, or closed at the next line: someone waits
}

// Match selects log lines.
type Match struct {
	what string
	ok   func(line string) bool
}

// Contains selects the lines that contain every one of the parts.
func Contains(parts ...string) Match {
	return Match{
		what: fmt.Sprintf("a line with %q", parts),
		ok: func(line string) bool {
			for _, part := range parts {
				if !strings.Contains(line, part) {
					return false
				}
			}
			return true
		},
	}
}

// Matches selects the lines that a regular expression matches somewhere. It panics on a malformed one.
func Matches(expression string) Match {
	return Match{what: fmt.Sprintf("a line like %q", expression), ok: regexp.MustCompile(expression).MatchString}
}

func (l *Log) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Mark is the number of lines so far: what comes from here on is after this moment.
func (l *Log) Mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// Lines returns the lines from a mark on, 0 for all.
func (l *Log) Lines(from int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	from = min(from, len(l.lines))
	return l.lines[from:len(l.lines):len(l.lines)]
}

// Find returns the lines from a mark on that match.
func (l *Log) Find(from int, m Match) []string {
	var found []string
	for _, line := range l.Lines(from) {
		if m.ok(line) {
			found = append(found, line)
		}
	}
	return found
}

// Count is the number of lines from a mark on that match.
func (l *Log) Count(from int, m Match) int { return len(l.Find(from, m)) }

// Wait returns the first line from a mark on that matches, whether it is there already or yet to come. It gives up
// when ctx is done.
func (l *Log) Wait(ctx context.Context, from int, m Match) (string, error) {
	line, _, err := l.Next(ctx, from, m)
	return line, err
}

// Next is Wait, and returns the mark just after the line as well: where to look for the one that follows.
func (l *Log) Next(ctx context.Context, from int, m Match) (line string, after int, err error) {
	start := from
	for {
		l.mu.Lock()
		lines := l.lines[min(from, len(l.lines)):]
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		for i, line := range lines {
			if m.ok(line) {
				return line, from + i + 1, nil
			}
		}
		from += len(lines)
		select {
		case <-changed:
		case <-ctx.Done():
			return "", from, fmt.Errorf("waiting for %s among %d lines of the broker's log: %w", m.what, from-start, context.Cause(ctx))
		}
	}
}

// tail is the last lines, for an error's text.
func (l *Log) tail(from, n int) string {
	lines := l.Lines(from)
	return "\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}
