package output

import (
	"fmt"
	"time"
)

// Instant writes a time in UTC: 2024-09-30T16:00:00Z.
func Instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Ago writes a time with how far it is from now; "-" for the zero time.
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := t.Sub(now)
	if d >= 0 {
		return fmt.Sprintf("%s (in %s)", Instant(t), Roughly(d))
	}
	return fmt.Sprintf("%s (%s ago)", Instant(t), Roughly(-d))
}

// Roughly writes a duration in its largest unit of which there are at least two: "3 days", "90 s".
func Roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	default:
		return fmt.Sprintf("%d s", d/time.Second)
	}
}
