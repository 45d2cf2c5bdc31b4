package plugin

import (
	"sync/atomic"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/registry"
)

// maxAuditedChanges is how many devices of one change the audit log names; it counts the others.
const maxAuditedChanges = 1000

// registryChanges passes on the changes of the registry, whose goroutine calls note.
type registryChanges struct {
	audit   *audit.Log                              // nil: none
	removed atomic.Pointer[former.Set]              // nil: not read yet
	rooms   atomic.Pointer[func([]registry.Change)] // nil: not started yet
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
	if rooms := r.rooms.Load(); rooms != nil {
		(*rooms)(changes)
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
