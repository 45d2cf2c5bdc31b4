package outbox

import (
	"log/slog"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/standing"
)

// A status that is made fatal is not the backend's state any more, whatever was known before the restart.
func TestFatalAfterRefusing(t *testing.T) {
	for _, fatal := range [][]int{nil, {401}} {
		o := Options{StateDir: t.TempDir(), BackendURL: "http://backend/", FatalStatuses: fatal, Log: slog.New(slog.DiscardHandler)}
		if err := standing.Save(o.StateDir, o.BackendURL, standing.State{Refusing: true, Status: 401, Since: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if _, got := newStandingKeeper(&o); got.Refusing != (fatal == nil) {
			t.Errorf("fatal %v: %+v", fatal, got)
		}
	}
}
