package diagnose

import (
	"fmt"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/envelope"
)

// clockSet is a time before which no device's clock stands that is set: 2001-09-09, 10^9 seconds after 1970.
const clockSet = 1_000_000_000

// Seconds from 1970 to the dates from which other clocks count: .NET's ticks, Windows' FILETIME, NTP, MicroPython.
const (
	since1    = -62_135_596_800
	since1601 = -11_644_473_600
	since1900 = -2_208_988_800
	since2000 = 946_684_800
)

// near tells whether a timestamp is within half a year of now, as that of a message that is being verified should be.
func near(timestamp int64, now time.Time) bool {
	const halfYear = 182 * 24 * 3600
	return timestamp > now.Unix()-halfYear && timestamp < now.Unix()+halfYear
}

// A unit is what a timestamp is given in by mistake. The zero value is seconds since 1970, which is no mistake.
type unit struct {
	name   string
	second int64 // so many are one second
	begin  int64 // seconds from 1970 to where it begins
}

// unitOf returns the unit of a timestamp that is too large for seconds since 1970.
func unitOf(timestamp int64, now time.Time) unit {
	for _, u := range []unit{{"seconds since 1900, as NTP has them", 1, since1900},
		{"units of 100 ns since 1601, as Windows' FILETIME has them", 1e7, since1601}, {"ticks, as .NET's DateTime has them", 1e7, since1}} {
		if near(timestamp/u.second+u.begin, now) {
			return u
		}
	}
	switch {
	case timestamp >= 1e17:
		return unit{name: "nanoseconds", second: 1e9}
	case timestamp >= 1e14:
		return unit{name: "microseconds", second: 1e6}
	case timestamp >= 1e11:
		return unit{name: "milliseconds", second: 1e3}
	}
	return unit{}
}

// Timestamp says in what unit a timestamp is given that is not in seconds since 1970, and what to do; "" where it is in
// seconds.
func Timestamp(timestamp int64, now time.Time) string {
	u := unitOf(timestamp, now)
	if u.name == "" {
		return ""
	}
	return fmt.Sprintf("the timestamp is in %s, so the message is refused as from the future: sign and send seconds since 1970 (%d).", u.name, timestamp/u.second+u.begin)
}

// Notes says what is odd about a message whose signature is good, a sentence each: a clock that is not set, a payload that
// is JSON in a string.
func Notes(e *envelope.Envelope, now time.Time) (notes []string) {
	switch ahead := time.Unix(e.Timestamp, 0).Sub(now); {
	case near(e.Timestamp+since2000, now):
		notes = append(notes, fmt.Sprintf("the timestamp counts from 2000, as MicroPython's time.time() does on some boards, so such a message is stale: add %d.", since2000))
	case e.Timestamp < clockSet:
		notes = append(notes, "the timestamp is before 2001, so the device's clock is not set, or counts from its start; such a message is stale.")
	case ahead > 10*time.Minute:
		notes = append(notes, fmt.Sprintf("the timestamp is %s ahead of this machine's clock, and a message from the future is refused: send seconds of UTC, not of local time, or set the clocks.", output.Roughly(ahead)))
	}
	if payload, err := parseNode(e.Payload); err == nil && payload.kind == '"' {
		if inner, err := parseNode([]byte(unquoted(payload.raw))); err == nil && (inner.kind == '{' || inner.kind == '[') {
			notes = append(notes, "the payload is a string that holds JSON, and the backend gets that string; send the value itself if it is to be one.")
		}
	}
	return notes
}
