//go:build faultinject

package plugin

import (
	"bytes"
	"log/slog"

	"mosquitto-bouncer/plugin/gate"
)

// injectFault panics, or uses the host where it may not, when a publish asks for it, so that tests can show what comes of it.
// Only a library built with the tag faultinject has it.
func injectFault(p *gate.Publish, h Host) {
	if bytes.Contains(p.Payload, []byte(`"inject_thread_fault"`)) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.Log(slog.LevelError, "off the broker's thread")
		}()
		<-done
	}
	if bytes.Contains(p.Payload, []byte(`"inject_fault"`)) {
		panic("injected fault")
	}
}
