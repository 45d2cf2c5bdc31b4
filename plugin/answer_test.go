package plugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// What is known of a requeued message is its timestamp: its answer is old though it was accepted, once more, just now.
func TestAnswerRules(t *testing.T) {
	now := time.Unix(1727712000, 0)
	r := answerRules{maxAge: time.Hour, tolerance: 5 * time.Minute}
	for _, test := range []struct {
		what      string
		accepted  time.Time
		timestamp time.Time
		old       bool
	}{
		{"new", now, now, false},
		{"from a clock behind", now, now.Add(-5 * time.Minute), false},
		{"from a clock ahead", now, now.Add(5 * time.Minute), false},
		{"waited for an hour", now.Add(-time.Hour), now.Add(-time.Hour), false},
		{"waited for longer", now.Add(-time.Hour - time.Second), now.Add(-time.Hour), true},
		{"requeued after a day", now, now.Add(-24 * time.Hour), true},
		{"requeued after an hour, the tolerance and a second", now, now.Add(-65*time.Minute - time.Second), true},
		{"requeued within the hour", now, now.Add(-30 * time.Minute), false},
	} {
		if old := r.tooOld(r.acceptedAt(test.accepted, test.timestamp.Unix()), now); old != test.old {
			t.Errorf("%s: too old: %v", test.what, old)
		}
	}
}

func TestWrapAnswer(t *testing.T) {
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
		got := wrapAnswer("550e8400-e29b-41d4-a716-446655440000", at, 201, []byte(body))
		if string(got) != head+want+"}" || !json.Valid(got) {
			t.Errorf("%q:\n got %s\nwant %s", body, got, head+want+"}")
		}
	}
	deep := wrapAnswer("x", at, 200, []byte(strings.Repeat("[", 60000)))
	if !json.Valid(deep) {
		t.Error("a deep one is no JSON")
	}
}
