package plugin

import (
	"log/slog"
	"slices"
	"time"

	"mosquitto-bouncer/plugin/crash"
)

// rounds is everything that is done on the broker's thread besides deciding, in this order. None of it waits for anything.
type rounds []round

// A round is one of them.
type round struct {
	// inTick is called in every TICK of the broker's event loop.
	inTick func(now time.Time)
	// often is called in every TICK, and before each publish is decided on: a broker that never ticks is served too.
	often func()
}

func (rs rounds) tick(now time.Time) {
	for _, r := range rs {
		if r.often != nil {
			r.often()
		} else {
			r.inTick(now)
		}
	}
}

// publish does what is done before each publish.
func (rs rounds) publish() {
	for _, r := range rs {
		if r.often != nil {
			r.often()
		}
	}
}

// closers are what Stop calls, the last one first, and a Start that fails.
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
