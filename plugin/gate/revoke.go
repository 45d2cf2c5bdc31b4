package gate

import (
	"errors"
	"log/slog"
	"strconv"

	"mosquitto-bouncer/plugin/registry"
)

const (
	// maxKicksPerTick is how many devices are disconnected in one tick: for each the broker goes through all its clients.
	maxKicksPerTick = 32
	// maxRevoked is how many devices may wait to be disconnected. Nothing of theirs is accepted in any case.
	maxRevoked = 1 << 16
)

// Revoke takes note of a change of the registry: clients of devices that were disabled or removed are to be
// disconnected, and a removed device's retained messages no longer count as verified. It reports whether Tick has to be called
// soon. Any goroutine.
func (g *Gate) Revoke(changes []registry.Change) (soon bool) {
	for _, c := range changes {
		switch c.What {
		case registry.Removed:
			for _, topic := range g.topics.gatedOf(c.ID) {
				g.retained.verified.Forget([]byte(topic))
			}
			g.revoked.Put(c.ID)
			soon = true
		case registry.Disabled:
			g.revoked.Put(c.ID)
			soon = true
		}
	}
	return soon
}

// kickRevoked disconnects devices that were disabled or removed. Only in a tick.
func (g *Gate) kickRevoked() {
	if g.revoked.Len() == 0 {
		return
	}
	for _, id := range g.revoked.Take(maxKicksPerTick) {
		g.offenders.kick(func() { g.broker.KickUser(id) })
	}
	if leftOut := g.revoked.Dropped(); leftOut > 0 {
		g.broker.Log(slog.LevelWarn, "more devices were disabled or removed at once than can be disconnected; "+
			"their publishes are refused count="+strconv.Itoa(leftOut))
	}
}

// otherCertificate reports whether the publisher's certificate is not one of those that are pinned for its device. It asks the
// broker for the certificate only if any is pinned. Only during the broker's call for p.
func (g *Gate) otherCertificate(p *Publish, d *registry.Device) bool {
	if d == nil || !d.Pinned() {
		return false
	}
	sum, ok := g.broker.Fingerprint(p.Connection)
	return !ok || !d.Allows(sum)
}

var errOtherCertificate = errors.New("the certificate is not one of those that are pinned for the device")
