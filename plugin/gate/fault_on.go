//go:build faultinject

package gate

import (
	"bytes"
	"log/slog"
)

// injectFault panics, or uses the broker on a wrong thread, when a publish asks for it, so that tests can show the effect.
// Only a library built with the tag faultinject has it.
func injectFault(p *Publish, b Broker) {
	if bytes.Contains(p.Payload, []byte(`"inject_thread_fault"`)) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Log(slog.LevelError, "off the broker's thread")
		}()
		<-done
	}
	if bytes.Contains(p.Payload, []byte(`"inject_fault"`)) {
		panic("injected fault")
	}
}
