//go:build !faultinject

package plugin

import "mosquitto-bouncer/plugin/gate"

// injectFault does nothing; see fault_on.go.
func injectFault(*gate.Publish, Host) {}
