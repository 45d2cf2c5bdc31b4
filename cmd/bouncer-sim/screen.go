package main

import (
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// width is the number of columns that no line of ours exceeds.
const width = 80

// A style is an ANSI "select graphic rendition" sequence.
type style string

const (
	bold   style = "\x1b[1m"
	dim    style = "\x1b[2m"
	red    style = "\x1b[31m"
	green  style = "\x1b[32m"
	yellow style = "\x1b[33m"
)

// screen prints lines, in colour where a person sees them. One goroutine at a time.
type screen struct {
	w      io.Writer
	colour bool
}

// newScreen prints to f, with colour if it is a terminal and NO_COLOR is not set (no-color.org).
func newScreen(f *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &screen{w: f, colour: err == nil && os.Getenv("NO_COLOR") == ""}
}

// in returns text in a style.
func (s *screen) in(st style, text string) string {
	if !s.colour || st == "" {
		return text
	}
	return string(st) + text + "\x1b[0m"
}

func (s *screen) line(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

func (s *screen) heading(text string) { s.line("\n%s", s.in(bold, text)) }

// field prints a labelled value; what would go beyond the width is cut.
func (s *screen) field(label string, st style, value string) {
	const before = 15 // columns before the value
	s.line("    %s%s", s.in(dim, fmt.Sprintf("%-*s", before-4, label)), s.in(st, clip(value, width-before)))
}

// event prints what happened at a time, on one line; what would go beyond the width is cut.
func (s *screen) event(at time.Time, st style, text string) {
	s.line("%s %s", s.in(dim, clock(at)), s.in(st, clip(text, width-len(time.TimeOnly)-1)))
}

// clip returns text cut to n columns.
func clip(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-1]) + "…"
}
