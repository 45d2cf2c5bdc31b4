package forward

import (
	"errors"
	"net"

	"github.com/valyala/fasthttp"
)

// meaning is what one response says about the message, or messages, that it answers.
type meaning uint8

const (
	meansFailed   meaning = iota // the backend may take the message yet
	meansTaken                   // the backend has it
	meansRefused                 // this message will never be taken
	meansDoubtful                // either the message or the backend is at fault: see standing
	meansShut                    // the backend refuses whatever we send
	meansGone                    // the URL is gone; an operator says whether it is back
)

// MinFatalStatus and MaxFatalStatus bound what Config.FatalStatuses may name.
const (
	MinFatalStatus = 300
	MaxFatalStatus = 599
)

// meaningOf sorts a response: 2xx to its end is a delivery. No or a broken response, 408, 425, 429 and 5xx are failures of
// the backend, or of the way to it. 401, 405 and 407 are about our credentials and our URL, never about one message. So
// may 403, 404 and 3xx be, but some backends answer so for one device or one payload. Every other 4xx is about the
// message. fatal statuses are about the message, whatever else they would mean.
func meaningOf(status int, complete bool, fatal []int) meaning {
	for _, f := range fatal {
		if f == status {
			return meansRefused
		}
	}
	switch {
	case status == 408, status == 425, status == 429:
		return meansFailed
	case status == 410:
		return meansGone
	case status == 401, status == 405, status == 407:
		return meansShut
	case status == 403, status == 404, status >= 300 && status < 400:
		return meansDoubtful
	case status >= 400 && status < 500:
		return meansRefused
	case status >= 200 && status < 300 && complete:
		return meansTaken
	}
	return meansFailed
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
		return "the backend takes no POST there: check [backend] url"
	}
	return "check [backend] url"
}
