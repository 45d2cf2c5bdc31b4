package plugin

import (
	"bytes"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
)

const (
	// maxKicksPerTick is how many devices are disconnected in one tick: for each the broker goes through all its clients.
	maxKicksPerTick = 32
	// maxRevoked is how many devices may wait to be disconnected. Whether they are or not, nothing of theirs is accepted.
	maxRevoked = 1 << 16
	// maxAuditedChanges is how many devices of one change the audit log names; the others it counts.
	maxAuditedChanges = 1000
)

// revoked holds the devices whose clients are to be disconnected because they were disabled or removed. Safe for
// concurrent use.
type revoked struct {
	any     atomic.Bool // whether there are any, so that looking costs one load
	mu      sync.Mutex  // guards what follows
	ids     []string
	leftOut int
}

func (r *revoked) add(ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(ids), maxRevoked-len(r.ids))
	r.ids = append(r.ids, ids[:n]...)
	r.leftOut += len(ids) - n
	r.any.Store(len(r.ids) > 0)
}

// take returns up to n of them, and how many had no room since the last call.
func (r *revoked) take(n int) (ids []string, leftOut int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, len(r.ids))
	ids, r.ids = r.ids[:n:n], r.ids[n:]
	leftOut, r.leftOut = r.leftOut, 0
	r.any.Store(len(r.ids) > 0)
	return ids, leftOut
}

// devicesChanged takes note of a change of the registry, whose goroutine calls it.
func (g *Gateway) devicesChanged(changes []registry.Change) {
	g.auditChanges(changes)
	var revoked, added, removed []string
	for _, c := range changes {
		switch c.What {
		case registry.Added:
			added = append(added, c.ID)
		case registry.Removed:
			removed = append(removed, c.ID)
			revoked = append(revoked, c.ID)
		case registry.Disabled:
			revoked = append(revoked, c.ID)
		}
	}
	if former := g.removed.Load(); former != nil {
		former.Registered(added)
	}
	if forget := g.forgetRetained.Load(); forget != nil {
		(*forget)(removed)
	}
	if len(revoked) > 0 {
		g.revoked.add(revoked)
		g.waker.Wake()
	}
	g.rotated.Load().SecretsChanged(changes)
}

// auditChanges records a change of the registry.
func (g *Gateway) auditChanges(changes []registry.Change) {
	if g.audit == nil {
		return
	}
	for _, c := range changes[:min(len(changes), maxAuditedChanges)] {
		g.audit.Add(audit.Record{Event: audit.Registry, Device: c.ID, Change: string(c.What)})
	}
	if more := len(changes) - maxAuditedChanges; more > 0 {
		g.audit.Add(audit.Record{Event: audit.Registry, Count: more, Detail: "more changes at once, not named"})
	}
}

// kickRevoked disconnects who was disabled or removed since. Only in a tick.
func (g *Gateway) kickRevoked() {
	if !g.revoked.any.Load() {
		return
	}
	ids, leftOut := g.revoked.take(maxKicksPerTick)
	for _, id := range ids {
		g.offenders.kick(func() { g.host.KickUser(id) })
	}
	if leftOut > 0 {
		g.host.Log(slog.LevelWarn, "more devices were disabled or removed at once than can be disconnected; "+
			"what they publish is refused count="+strconv.Itoa(leftOut))
	}
}

// otherCertificate reports whether the publisher's certificate is not one of those that are pinned for its device. The
// broker is asked for it only if any is. Only while the broker presents p.
func (g *Gateway) otherCertificate(p *gate.Publish, d *registry.Device) bool {
	if d == nil || !d.Pinned() {
		return false
	}
	sum, ok := g.host.Fingerprint(p.Connection)
	return !ok || !d.Allows(sum)
}

var errOtherCertificate = errors.New("the certificate is not one of those that are pinned for the device")

// auditDenial records a refusal.
func (g *Gateway) auditDenial(p *gate.Publish, messageID []byte, reason gate.Reason, detail error) {
	if g.audit == nil || !g.audit.Sample(g.decision.now, reason.String()) {
		return
	}
	r := audit.Record{
		Time:      g.decision.now,
		Event:     audit.Denied,
		Device:    string(cut(p.Identity, 64)),
		Client:    string(bytes.ToValidUTF8(cut(p.ClientID, 64), []byte("?"))),
		Topic:     string(cut(p.Topic, 128)),
		MessageID: string(cut(messageID, 64)),
		Reason:    reason.String(),
	}
	if detail != nil {
		r.Detail = detail.Error()
	}
	g.audit.Add(r)
}
