// Package api has the documents of the HTTP API that are both written and read here: by the listener and by bouncerctl.
// docs/openapi.yaml is their specification.
package api

import "time"

// A Device is what the gateway tells of a device.
type Device struct {
	ID            string            `json:"device_id"`
	Registered    bool              `json:"registered"`
	Disabled      bool              `json:"disabled"`
	Since         *time.Time        `json:"since"`
	LastAccepted  *time.Time        `json:"last_accepted"`
	Accepted      uint64            `json:"accepted"`
	Redelivered   uint64            `json:"redelivered"`
	Refused       map[string]uint64 `json:"refused"`
	Pending       int64             `json:"pending"`
	OldestSince   *time.Time        `json:"oldest_pending"`
	OldestSeconds *float64          `json:"oldest_pending_seconds"`
	Failures      int64             `json:"failed_requests"`
	Suspended     bool              `json:"suspended"`
}

// Devices is a list of devices.
type Devices struct {
	Devices []Device `json:"devices"`
}
