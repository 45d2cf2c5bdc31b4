package forward

import (
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// outage tells the log when deliveries begin to fail and when they succeed again, and not each time.
type outage struct {
	lanes  int       // that failed and have not recovered
	since  time.Time // the first of them failed
	warned time.Time // of the last warning; zero: none yet
	said   bool      // a warning was written, and not yet that it is over
}

// begin notes that a lane fails that did not before.
func (o *outage) begin(now time.Time) {
	if o.lanes++; o.lanes == 1 && !o.said {
		o.since = now
	}
}

// warn reports whether a failed attempt is to be logged: at most one a minute.
func (o *outage) warn(now time.Time) bool {
	if !o.warned.IsZero() && now.Sub(o.warned) < warnEvery {
		return false
	}
	o.warned, o.said = now, true
	return true
}

// over reports, once the backend has taken a message, whether it is to be logged that none fails any more.
func (o *outage) over() bool {
	if o.lanes != 0 || !o.said {
		return false
	}
	o.said = false
	return true
}

// events are what account found to be done or worth telling once the lock is released.
type events struct {
	more bool // the worker is to continue with the parcel
	gone bool // delivery was suspended

	failing, held, recovered, down, resumed bool
	refusing, doubted, blocked              bool

	pending, lanes int
	since          time.Time
}

// tell logs the events. Not even a log that panics may make a worker lose its parcel.
func (f *Forwarder) tell(e *events, a *attempt) {
	defer func() { _ = recover() }()
	if e.failing {
		args := []any{"device", a.device, "message_id", a.messageID}
		if a.Status != 0 {
			args = append(args, "status", a.Status)
		}
		if a.Err != nil {
			args = append(args, "error", a.Err)
		}
		f.log.Warn("backend does not take messages, retrying",
			append(args, "failing_devices", e.lanes, "pending", e.pending)...)
	}
	if e.held {
		f.sampler.warn(f.log, "a message is held up, trying again", "device", a.device, "message_id", a.messageID,
			"error", a.Err)
	}
	if e.refusing {
		f.log.Error("backend is refusing every message; no message is given up, and one at a time is tried", "status", a.Status,
			"url", a.Address, "device", a.device, "pending", e.pending, "advice", a.Advice)
	}
	if e.doubted {
		what := "backend refuses a message; a few more attempts follow before it becomes a dead letter"
		if a.fate == kept {
			what = "backend refuses a device and takes messages of others; the device's messages are kept"
		}
		f.sampler.warn(f.log, what, "device", a.device, "message_id", a.messageID, "status", a.Status)
	}
	if e.blocked {
		f.sampler.warn(f.log, "the device's messages wait: there is no room for its dead letter", "device", a.device,
			"message_id", a.messageID, "error", a.Err)
	}
	if e.down {
		f.log.Warn("backend seems down; trying with one message at a time", "pending", e.pending)
	}
	if e.resumed {
		f.log.Info("backend answers again, sending at full rate", "pending", e.pending)
	}
	if e.recovered {
		f.log.Info("backend takes messages again", "after", time.Since(e.since).Round(time.Millisecond),
			"pending", e.pending)
	}
}

// sampler bounds lines of which there is one a message.
type sampler struct {
	limiter    *rate.Limiter
	suppressed atomic.Uint64 // since the last line
}

func (s *sampler) warn(log *slog.Logger, msg string, args ...any) {
	if !s.limiter.Allow() {
		s.suppressed.Add(1)
		return
	}
	if n := s.suppressed.Swap(0); n > 0 {
		args = append(args, "lines_suppressed", n)
	}
	log.Warn(msg, args...)
}
