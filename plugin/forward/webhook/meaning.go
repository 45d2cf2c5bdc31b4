package webhook

import (
	"time"

	"errors"
	"net"

	"mosquitto-bouncer/plugin/forward"

	"github.com/valyala/fasthttp"
)

// reply is what happened to one request.
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

// MinFatalStatus and MaxFatalStatus bound what Config.FatalStatuses may name.
const (
	MinFatalStatus = 300
	MaxFatalStatus = 599
)

// meaningOf sorts a response: 2xx to its end is a delivery. No or a broken response, 408, 425, 429 and 5xx are failures of
// the backend, or of the way to it. 401, 405 and 407 are about our credentials and our URL, never about one message. So
// may 403, 404 and 3xx be, but some backends answer so for one device or one payload. Every other 4xx is about the
// message. fatal statuses are about the message, whatever else they would mean.
func meaningOf(status int, complete bool, fatal []int) forward.Meaning {
	for _, f := range fatal {
		if f == status {
			return forward.Refused
		}
	}
	switch {
	case status == 408, status == 425, status == 429:
		return forward.Failed
	case status == 410:
		return forward.Gone
	case status == 401, status == 405, status == 407:
		return forward.RefusesAll
	case status == 403, status == 404, status >= 300 && status < 400:
		return forward.Doubtful
	case status >= 400 && status < 500:
		return forward.Refused
	case status >= 200 && status < 300 && complete:
		return forward.Taken
	}
	return forward.Failed
}

// meaning says what the reply means, fatal statuses considered.
func (r *reply) meaning(fatal []int) forward.Meaning {
	means := meaningOf(r.status, r.err == nil, fatal)
	switch {
	case means != forward.Failed:
	case r.misread && r.succeeded():
		return forward.Unreadable
	case r.misread:
		return forward.Garbled
	case !mayBeTheMessage(r):
		return forward.Busy
	}
	return means
}

// mayBeTheMessage reports whether a failed request may owe its failure to a message in it. A connection that was never
// made has nothing to do with what was to be sent; 425 and 429 speak of the time.
func mayBeTheMessage(r *reply) bool {
	if r.status != 0 {
		return r.status != 425 && r.status != 429
	}
	op, ok := errors.AsType[*net.OpError](r.err)
	return r.err != nil && !errors.Is(r.err, fasthttp.ErrDialTimeout) && (!ok || op.Op != "dial")
}

// advice says what to check when the backend refuses everything with a status.
func advice(status int) string {
	switch status {
	case 401, 407:
		return "the backend does not accept the credentials: check [backend] bearer_token_file, signing_secret_file and cert_file"
	case 403:
		return "the backend does not allow it: check the token's rights, and [backend] url"
	case 405:
		return "the backend does not accept POST there: check [backend] url"
	}
	return "check [backend] url"
}
