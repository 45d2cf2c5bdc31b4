//go:build faultinject

package plugin

import "bytes"

// injectFault panics when a publish asks for it, so that tests can show that the broker survives a panic in a callback.
// Only a library built with the tag faultinject has it.
func injectFault(p *Publish) {
	if bytes.Contains(p.Payload, []byte(`"inject_fault"`)) {
		panic("injected fault")
	}
}
