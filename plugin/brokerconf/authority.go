package brokerconf

import (
	"iter"
	"os"
)

// An Authority is what a listener trusts to issue its clients' certificates.
type Authority struct {
	Listener int // index in Config.Listeners, or NoListener
	Line     Line
	// File is the cafile; "" if a capath is named, whose certificates are not
	// looked at.
	File string
}

// Authorities yields what each listener that demands client certificates
// trusts.
func (c *Config) Authorities() iter.Seq[Authority] {
	return func(yield func(Authority) bool) {
		for i := NoListener; i < len(c.Listeners); i++ {
			if l, found := c.Last("require_certificate", i); !found || !isOn(l) {
				continue
			}
			file, hasFile := c.Last("cafile", i)
			dir, hasDir := c.Last("capath", i)
			a := Authority{Listener: i, Line: file, File: file.Value}
			if hasDir {
				a.Line, a.File = dir, ""
			}
			if (hasFile || hasDir) && !yield(a) {
				return
			}
		}
	}
}

// DifferentAuthorities returns two listeners that demand client certificates
// and may trust different CAs, by their cafile or capath lines. The result is
// false if all name the same file, or there is at most one such listener and
// it names a file.
func (c *Config) DifferentAuthorities() (a, b Line, differ bool) {
	var first *Authority
	for next := range c.Authorities() {
		switch {
		case first == nil:
			first = &next
		case next.File == "" || first.File == "" || !sameFile(first.File, next.File):
			return first.Line, next.Line, true
		}
	}
	return Line{}, Line{}, false
}

// Last returns the setting of a listener that is in force: its last line. The
// result is false if there is none.
func (c *Config) Last(key string, listener int) (found Line, ok bool) {
	for l := range c.Lines(key) {
		if l.Listener == listener {
			found, ok = l, true
		}
	}
	return found, ok
}

func isOn(l Line) bool { return l.Value == "true" || l.Value == "1" }

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
