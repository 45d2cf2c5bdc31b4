//go:build !faultinject

package plugin

// injectFault does nothing; see fault_on.go.
func injectFault(*Publish, Host) {}
