package registry

import "time"

// health is how the last poll went.
type health struct {
	current time.Time // when the snapshot was last known to be what the database holds
	err     error     // why it is not known now; nil: it is
}

func (r *Registry) noteHealth(err error) {
	h := &health{err: err}
	if err == nil {
		h.current = time.Now()
	} else if before := r.health.Load(); before != nil {
		h.current = before.current
	}
	r.health.Store(h)
}

// Health returns when the devices were last known to be those of the database, which is asked four times a second, and
// why they are not known to be just now, for want of the secrets' key too; nil: they are. Before the first time the time is zero. Any thread.
func (r *Registry) Health() (current time.Time, err error) {
	h := r.health.Load()
	if h == nil {
		return time.Time{}, nil
	}
	return h.current, h.err
}
