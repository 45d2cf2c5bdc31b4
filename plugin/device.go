package plugin

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/outbox"
)

// slowestEvery is how old the list of the slowest devices may be: to make it, every lane is looked at.
const slowestEvery = time.Second

// Device returns what is known of a device.
func (s *service) Device(ctx context.Context, id string) (httpd.Device, error) {
	if s.registry.Lookup([]byte(id)) == nil {
		return httpd.Device{}, errNoSuchDevice
	}
	counted, err := s.counts(ctx, []string{id})
	if err != nil {
		return httpd.Device{}, err
	}
	return s.describe(s.outbox.Lanes(id)[0], &counted[0]), nil
}

// Slowest returns up to n of the devices whose messages wait longest for the backend, and at most httpd.MaxDevices.
func (s *service) Slowest(ctx context.Context, n int) ([]httpd.Device, error) {
	lanes := slices.DeleteFunc(s.outbox.Lanes(s.slowest.get(s.outbox)...), func(q forward.LaneStatus) bool { return q.Messages == 0 })
	slices.SortFunc(lanes, func(a, b forward.LaneStatus) int { return cmp.Compare(a.Oldest, b.Oldest) })
	lanes = lanes[:min(n, len(lanes))]
	ids := make([]string, len(lanes))
	for i := range lanes {
		ids[i] = lanes[i].Device
	}
	counted, err := s.counts(ctx, ids)
	if err != nil {
		return nil, err
	}
	devices := make([]httpd.Device, len(lanes))
	for i := range lanes {
		devices[i] = s.describe(lanes[i], &counted[i])
	}
	return devices, nil
}

// slowest has the devices with the oldest messages at the last request, for requests within the next second. How many of
// their messages wait is read for each request.
type slowest struct {
	mu      sync.Mutex // guards what follows; only requests take it, and hold it while they look at the lanes
	at      time.Time
	devices []string
}

func (s *slowest) get(box *outbox.Outbox) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) >= slowestEvery {
		lanes := box.Slowest(httpd.MaxDevices)
		s.devices = make([]string, len(lanes))
		for i := range lanes {
			s.devices[i] = lanes[i].Device
		}
		s.at = time.Now()
	}
	return s.devices
}

// counts asks the gate.
func (s *service) counts(ctx context.Context, devices []string) ([]gate.Counts, error) {
	counted, err := s.gate.Counts(ctx, devices)
	switch {
	case errors.Is(err, gate.ErrQuestions):
		return nil, &httpd.Error{Status: 503, Reason: "overloaded", Detail: err.Error(), RetryAfter: time.Second}
	case err != nil:
		return nil, &httpd.Error{Status: 503, Reason: "unavailable", Detail: err.Error(), RetryAfter: time.Second}
	}
	return counted, nil
}

// describe returns the document of a device.
func (s *service) describe(q forward.LaneStatus, c *gate.Counts) httpd.Device {
	d := httpd.Device{
		ID:           q.Device,
		Since:        s.health.started,
		Accepted:     c.Accepted,
		LastAccepted: c.LastAccepted,
		Redelivered:  c.Others[gate.Redelivered],
		Pending:      q.Messages,
		Suspended:    q.Suspended,
		Failures:     q.Failures,
		Refused:      make(map[string]uint64),
		OldestSince:  s.outbox.AcceptedAt(q),
	}
	if r := s.registry.Lookup([]byte(q.Device)); r != nil {
		d.Registered, d.Disabled = true, r.Disabled
	}
	for reason, n := range c.Others {
		if n > 0 && gate.Reason(reason) != gate.Redelivered {
			d.Refused[gate.Reason(reason).String()] = n
		}
	}
	return d
}
