package downlink

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestResponsesToOldMessages(t *testing.T) {
	now := time.Unix(1727712000, 0)
	r := Responses{options: ResponseOptions{MaxAge: time.Hour}}
	for age, old := range map[time.Duration]bool{-time.Hour: false, 0: false, time.Hour: false, time.Hour + 1: true, 24 * time.Hour: true} {
		if got := r.tooOld(now.Add(-age), now); got != old {
			t.Errorf("after %v, too old: %v", age, got)
		}
	}
}

func TestWrap(t *testing.T) {
	at := time.Unix(1727712000, 999)
	const head = `{"message_id":"550e8400-e29b-41d4-a716-446655440000","accepted_at":"2024-09-30T16:00:00Z","status":201,"body":`
	for body, want := range map[string]string{
		`{"ok":true}`:           `{"ok":true}`,
		" [1, 2.50]\n":          " [1, 2.50]\n",
		`{"a":1,"a":2}`:         `{"a":1,"a":2}`,
		`null`:                  `null`,
		`stored`:                `"stored"`,
		`{"ok":true} {}`:        `"{\"ok\":true} {}"`,
		"say \"hi\"\n\x00":      `"say \"hi\"\n\u0000"`,
		"\xff\xfe":              "\"\ufffd\ufffd\"",
		`"},"status":999,"x":"`: `"\"},\"status\":999,\"x\":\""`,
		`NaN`:                   `"NaN"`,
	} {
		got := wrap("550e8400-e29b-41d4-a716-446655440000", at, 201, []byte(body))
		if string(got) != head+want+"}" || !json.Valid(got) {
			t.Errorf("%q:\n got %s\nwant %s", body, got, head+want+"}")
		}
	}
	deep := wrap("x", at, 200, []byte(strings.Repeat("[", 60000)))
	if !json.Valid(deep) {
		t.Error("a deep one is no JSON")
	}
}
