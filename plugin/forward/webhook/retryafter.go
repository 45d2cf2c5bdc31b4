package webhook

import (
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what a backend may ask for.
const maxRetryAfter = time.Hour

// parseRetryAfter reads a Retry-After field (RFC 9110, section 10.2.3): seconds, or a date in any of the three formats
// of HTTP. It returns 0 for one that is malformed or past, and at most an hour.
func parseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseInt(value, 10, 32)
		if err != nil || seconds > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	for _, layout := range [...]string{"Mon, 02 Jan 2006 15:04:05 GMT", time.RFC850, time.ANSIC} {
		if date, err := time.Parse(layout, value); err == nil {
			return min(max(0, date.Sub(now)), maxRetryAfter)
		}
	}
	return 0
}
