package forward

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

const (
	minBackoff    = 100 * time.Millisecond
	maxBackoff    = 30 * time.Second
	maxRetryAfter = time.Hour
)

// reply is what became of one request.
type reply struct {
	status      int           // 0: no status line was received
	err         error         // nil: the response was received to its end
	retryAfter  time.Duration // 0: none given
	body        []byte        // a copy; nil unless it is to be handed on
	contentType string
	unusable    string // why the body of a 2xx is not handed on
	excerpt     string // of the body of a final refusal
	latency     time.Duration
	misread     bool // there is an answer, perhaps even a success, but it cannot be read
}

type outcome uint8

const (
	retry     outcome = iota
	delivered         // all of the request
	dead              // the one message of the request
	gone              // the URL is, and an operator is to say whether it is back
	split             // the backend refused a batch: half of it may do better
	hold              // the Store failed
	noRoom            // the Store has no room for the dead letter
	kept              // the backend refuses everything: nothing is given up
	doubted           // the backend refuses this message, and may take it yet
)

// backoff returns a random time below a ceiling that doubles with each failure, from 100 ms at the first to limit:
// exponential back-off with full jitter.
func backoff(failures int, limit time.Duration) time.Duration {
	ceiling := limit
	if shift := failures - 1; shift < 20 {
		ceiling = min(limit, minBackoff<<shift)
	}
	return rand.N(ceiling)
}

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
