package gate

import (
	"log/slog"
	"time"

	"mosquitto-bouncer/plugin/subscription"
)

// A clock counts the TICKs of the broker's event loop.
type clock struct {
	started  time.Time
	ticks    uint64  // how often Tick was called
	tickless bool    // the log says that it never is
	departed uintptr // the connection that ended last since the last tick; 0: none
}

// hasDeparted reports whether the connection of p has ended since the last tick, so that p is its last will: before the
// broker uses the number for another connection that publishes, it ticks several times. A broker that never ticks (2.0.11
// with per_listener_settings) shows no certificate for a client whose connection has ended, so its will is refused too.
func (c *clock) hasDeparted(p *Publish) bool {
	return c.ticks > 0 && c.departed != 0 && c.departed == p.Connection
}

// missTicks logs, once, that the broker never ticks.
func (c *clock) missTicks(now time.Time, log *slog.Logger) {
	if c.ticks > 0 || c.tickless || now.Sub(c.started) < 5*time.Second {
		return
	}
	c.tickless = true
	log.Warn("the broker never ticks: Mosquitto before 2.0.15 does not with per_listener_settings true. Responses wait " +
		"for the next message, and no client is disconnected for bad signatures; upgrade, or set per_listener_settings false")
}

// Tick begins a round of the broker's event loop, ten times a second on an idle broker.
func (g *Gate) Tick(now time.Time) {
	g.clock.ticks++
	g.figures.tick(now)
	g.endPending()
	g.retained.served = served{}
	g.clock.departed = 0
	g.relay.ticked()
	g.unsent.ticked()
}

// AnswerCounts answers the questions of Counts.
func (g *Gate) AnswerCounts() { g.questions.answer(g.counted) }

// Housekeep does what waits for a tick: it disconnects clients, and forgets message ids. The broker calls the plugin while it
// disconnects clients.
func (g *Gate) Housekeep(now time.Time) {
	g.kickRevoked()
	g.followStrangers()
	g.offenders.disconnect(g.broker.Kick, func(device, line string) {
		if g.refusals.log.sampler.Allow(now, []byte(device), "disconnected", false) {
			g.broker.Log(slog.LevelWarn, line)
		}
	})
	g.sessions.tick(g.clock.ticks, g.broker.Publish)
	g.expire(now, expirePerTick)
	g.refusals.log.reportLeftOut(now, g.broker.Log)
}

// expire forgets up to n message ids that are old enough.
func (g *Gate) expire(now time.Time, n int) {
	g.decision.seen.Expire(now.Unix(), n)
	g.forgotten(now.Unix())
}

// Connected takes note of a new connection. Mosquitto reports these from 2.1 on.
func (g *Gate) Connected(p *Publish) {
	defer g.panics.Recover("connect")
	if g.clientIDs.foreign(p) {
		g.refuseForeign(p)
		return
	}
	g.expelImpostor(p)
}

// Disconnected notes that a client's connection has ended, and what has become of its session. Of p only Connection,
// Identity and ClientID count.
func (g *Gate) Disconnected(p *Publish, end subscription.End) {
	defer g.panics.Recover("disconnect")
	g.endPending()
	g.clock.departed = p.Connection
	noted := g.offenders.ended(p.Connection)
	if g.clientIDs.foreign(p) {
		if !noted && !g.offenders.kicking {
			g.foreignEnded(p)
		}
		return
	}
	for _, holder := range [][]byte{p.Identity, uncertified(p.Identity)} { // no certificate is shown any more
		if session, ask := g.sessions.table.Ended(holder, p.ClientID, p.Connection, end); ask {
			g.sessions.add(session, end)
		}
	}
	if d := g.devices.known(g.registry.Lookup(p.Identity)); d != nil {
		d.disconnected(p.ClientID)
	}
}
