package diagnose

import (
	"strings"
	"time"

	"mosquitto-bouncer/plugin/envelope"
)

// A joined is a way to join the four parts.
type joined struct {
	guess
	join func(payload string) string
}

// joinsOf returns the ways to join an envelope's parts, the right one first.
func joinsOf(e *envelope.Envelope) (all []joined) {
	head := e.AppendSigned(nil, false)
	head = head[:len(head)-len(e.Payload)]
	device, id := string(e.DeviceID), string(e.MessageIDText)
	timestamp := strings.TrimSuffix(strings.TrimPrefix(string(head), device), id)
	add := func(what, cure string, join func(p string) string) {
		all = append(all, joined{guess{what: what, cure: cure}, join})
	}
	parts := func(what, cure, device, timestamp, id string) {
		add(what, cure, func(p string) string { return device + timestamp + id + p })
	}
	add("", "", func(p string) string { return device + timestamp + id + p })
	for separator, name := range map[string]string{"|": "", ".": "", ":": "", ",": "", ";": "", "-": "", "_": "", "/": "", "&": "",
		"\n": "a line end", "\r\n": "CRLF", " ": "a blank", "\t": "a tab", "\x00": "a NUL byte"} {
		if name == "" {
			name = `"` + separator + `"`
		}
		add(name+" between the parts", "join them with nothing between", func(p string) string {
			return strings.Join([]string{device, timestamp, id, p}, separator)
		})
	}
	const order = "sign device_id, timestamp, message_id and payload, in that order"
	add("only the payload", order, func(p string) string { return p })
	add("message_id before timestamp", order, func(p string) string { return device + id + timestamp + p })
	add("timestamp before device_id", order, func(p string) string { return timestamp + device + id + p })
	add("timestamp and message_id before device_id", order, func(p string) string { return timestamp + id + device + p })
	add("message_id first", order, func(p string) string { return id + device + timestamp + p })
	add("the payload first", order, func(p string) string { return p + device + timestamp + id })
	add("the parts without message_id", order, func(p string) string { return device + timestamp + p })
	add("the parts without device_id", order, func(p string) string { return timestamp + id + p })
	add("the parts without timestamp", order, func(p string) string { return device + id + p })
	add("the parts without timestamp and message_id", order, func(p string) string { return device + p })
	const same = "sign the very characters that are sent"
	if plain := strings.ReplaceAll(id, "-", ""); plain != id {
		parts("message_id without its hyphens", same, device, timestamp, plain)
	}
	for _, letters := range []struct {
		name string
		to   func(string) string
	}{{"lower", strings.ToLower}, {"upper", strings.ToUpper}} {
		if other := letters.to(id); other != id {
			parts("message_id in "+letters.name+" case", same, device, timestamp, other)
		}
		if other := letters.to(device); other != device {
			parts("device_id in "+letters.name+" case", same, other, timestamp, id)
		}
	}
	parts("a timestamp in milliseconds", "sign and send seconds, the same digits", device, timestamp+"000", id)
	parts("a timestamp in microseconds", "sign and send seconds, the same digits", device, timestamp+"000000", id)
	for unit, digits := range map[string]int{"milliseconds": 3, "microseconds": 6, "nanoseconds": 9} {
		if len(timestamp) > 9+digits {
			parts("a timestamp in seconds, but it was sent in "+unit, "send seconds too", device, timestamp[:len(timestamp)-digits], id)
		}
	}
	parts("a timestamp with a fraction", "write whole seconds without a fraction", device, timestamp+".0", id)
	parts("a timestamp in quotes", "sign only the digits", device, `"`+timestamp+`"`, id)
	parts("device_id and message_id in quotes", "sign the characters between the quotes", `"`+device+`"`, timestamp, `"`+id+`"`)
	if at := time.Unix(e.Timestamp, 0).UTC(); at.Year() > 0 && at.Year() < 10000 {
		for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04:05+00:00", "2006-01-02 15:04:05"} {
			parts("the timestamp as a date", "sign the digits that are sent", device, at.Format(form), id)
		}
	}
	return all
}
