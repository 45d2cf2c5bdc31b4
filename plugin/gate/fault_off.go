//go:build !faultinject

package gate

// injectFault does nothing; see fault_on.go.
func injectFault(*Publish, Broker) {}
