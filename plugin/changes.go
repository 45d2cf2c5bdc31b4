package plugin

import (
	"sync"
	"sync/atomic"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/registry"
)

// maxAuditedChanges is how many devices of one change the audit log names; it counts the others.
const maxAuditedChanges = 1000

// registryChanges passes on the changes of the registry, whose goroutine calls note.
type registryChanges struct {
	audit   *audit.Log                 // nil: none
	removed atomic.Pointer[former.Set] // nil: not read yet

	mu      sync.Mutex              // guards what follows; held while rooms runs
	rooms   func([]registry.Change) // nil: not started yet
	waiting []registry.Change       // for rooms
}

// connect passes the changes on to rooms, which are the gate and the commands, with those that came before.
func (r *registryChanges) connect(rooms func([]registry.Change)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rooms = rooms
	if len(r.waiting) > 0 {
		rooms(r.waiting)
		r.waiting = nil
	}
}

func (r *registryChanges) note(changes []registry.Change) {
	auditChanges(r.audit, changes)
	var added []string
	for _, c := range changes {
		if c.What == registry.Added {
			added = append(added, c.ID)
		}
	}
	if removed := r.removed.Load(); removed != nil {
		removed.Registered(added)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rooms != nil {
		r.rooms(changes)
		return
	}
	for _, c := range changes {
		if c.What != registry.Added {
			r.waiting = append(r.waiting, c)
		}
	}
}

// auditChanges records a change of the registry.
func auditChanges(log *audit.Log, changes []registry.Change) {
	if log == nil {
		return
	}
	for _, c := range changes[:min(len(changes), maxAuditedChanges)] {
		log.Add(audit.Record{Event: audit.Registry, Device: c.ID, Change: string(c.What)})
	}
	if more := len(changes) - maxAuditedChanges; more > 0 {
		log.Add(audit.Record{Event: audit.Registry, Count: more, Detail: "more changes at once, not named"})
	}
}
