package plugin

import (
	"log/slog"
	"slices"

	"mosquitto-bouncer/plugin/crash"
)

// closers are what Stop calls, and a Start that fails: the last one first.
type closers struct {
	log *slog.Logger
	all []closer
}

type closer struct {
	what  string // for the log
	close func() error
}

func (c *closers) add(what string, f func() error) { c.all = append(c.all, closer{what, f}) }

// do adds what cannot fail.
func (c *closers) do(what string, f func()) { c.add(what, func() error { f(); return nil }) }

// close calls all, once, also after a panic in one of them.
func (c *closers) close() {
	for _, one := range slices.Backward(c.all) {
		func() {
			defer crash.Log(c.log, "stop", "part", one.what)
			if err := one.close(); err != nil {
				c.log.Error("could not close "+one.what, "error", err)
			}
		}()
	}
	c.all = nil
}
