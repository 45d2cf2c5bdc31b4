package registry

// OnChange has changed called after every change that Lookup and WasRegistered see, by the goroutine that follows the
// database, instead of what an earlier call named. It must return at once.
func (r *Registry) OnChange(changed func()) { r.changed.Store(&changed) }

// A Change is something that has become different about a device.
type Change struct {
	ID   string
	What ChangeKind
}

// A ChangeKind is what has become different.
type ChangeKind string

// The kinds of changes. Their texts are an interface: the audit log uses them.
const (
	Added       ChangeKind = "added"
	Removed     ChangeKind = "removed"
	Disabled    ChangeKind = "disabled"
	Enabled     ChangeKind = "enabled"
	NewSecrets  ChangeKind = "secrets"      // rotated, replaced, or an old one has ended
	NewKeys     ChangeKind = "public_keys"  // likewise
	Certificate ChangeKind = "certificates" // which are pinned
)

// OnChanges has told called with what changed after every change that Lookup sees, by the goroutine that follows the
// database, instead of what an earlier call named. It must return at once, and may keep the slice.
func (r *Registry) OnChanges(told func([]Change)) { r.told.Store(&told) }

// tell says to those who want to know that, and what, has changed.
func (r *Registry) tell(before *snapshot, d *delta) {
	if changed := r.changed.Load(); changed != nil {
		(*changed)()
	}
	told := r.told.Load()
	if told == nil {
		return
	}
	changes := make([]Change, 0, len(d.put)+len(d.drop))
	for _, device := range d.put {
		known := before.lookup([]byte(device.ID))
		if known == nil {
			changes = append(changes, Change{device.ID, Added})
			known = &Device{ID: device.ID, Secrets: device.Secrets, rare: device.rare} // what it came with is no change
		}
		switch {
		case device.Disabled && !known.Disabled:
			changes = append(changes, Change{device.ID, Disabled})
		case !device.Disabled && known.Disabled:
			changes = append(changes, Change{device.ID, Enabled})
		}
		if !sameSecrets(device, known) {
			changes = append(changes, Change{device.ID, NewSecrets})
		}
		if !sameKeys(device, known) {
			changes = append(changes, Change{device.ID, NewKeys})
		}
		if !samePins(device, known) {
			changes = append(changes, Change{device.ID, Certificate})
		}
	}
	for _, device := range d.drop {
		changes = append(changes, Change{device.ID, Removed})
	}
	(*told)(changes)
}
