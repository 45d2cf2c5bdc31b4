package webhook

import (
	"testing"

	"mosquitto-bouncer/plugin/forward"
)

func TestMeaningOf(t *testing.T) {
	for status := range 700 {
		want := forward.Failed
		switch {
		case status >= 200 && status < 300:
			want = forward.Taken
		case status >= 300 && status < 400, status == 403, status == 404:
			want = forward.Doubtful
		case status == 401, status == 405, status == 407:
			want = forward.RefusesAll
		case status == 410:
			want = forward.Gone
		case status == 408, status == 425, status == 429:
		case status >= 400 && status < 500:
			want = forward.Refused
		}
		if got := meaningOf(status, true, nil); got != want {
			t.Errorf("%d means %d, want %d", status, got, want)
		}
		if got := meaningOf(status, true, []int{499, status}); got != forward.Refused {
			t.Errorf("%d means %d though it is fatal", status, got)
		}
		if got := meaningOf(status, false, nil); got != want && (want != forward.Taken || got != forward.Failed) {
			t.Errorf("%d, cut off, means %d", status, got)
		}
	}
}
