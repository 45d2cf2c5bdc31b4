package plugin

import (
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/writable"
)

// tickWithin is how long a round of the broker's event loop may take before the gateway counts as unhealthy. Ten a second are
// normal.
const tickWithin = 5 * time.Second

// A health checks everything that a publish or a command needs here. A backend that is down is not a fault of the gateway.
// Any goroutine.
type health struct {
	started  time.Time
	gate     *gate.Gate
	registry *registry.Registry
	writable *writable.Checks
	reload   func() string  // why the last reload failed; "": it did not
	checks   []func() error // of the rooms
}

// wrong returns what prevents the gateway from doing its work, one sentence each.
func (h *health) wrong() (wrong []string) {
	if late := time.Since(h.gate.LastTick()); late > tickWithin {
		wrong = append(wrong, fmt.Sprintf("broker event loop has not run for %d s", int(late.Seconds())))
	}
	if current, err := h.registry.Health(); err != nil {
		wrong = append(wrong, fmt.Sprintf("the device database cannot be read: %v; the state of %s is in force", err, current.UTC().Format(time.RFC3339)))
	}
	wrong = append(wrong, h.writable.Wrong()...)
	if why := h.reload(); why != "" {
		wrong = append(wrong, "bouncer.toml was not reloaded: "+why)
	}
	for _, check := range h.checks {
		if err := check(); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	return wrong
}
