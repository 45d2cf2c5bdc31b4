package forward

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// standingDevices is how many devices must be refused, with nothing taken in between, for that to be the backend's
	// own state. Where there are fewer devices, all of them must be.
	standingDevices = 8
	// heardWithin is how long a device counts as one of those that there are.
	heardWithin = 24 * time.Hour
	// A message that is the only one refused with a doubtful status is given up after so many tries, or so much time.
	maxDoubts    = 10
	maxDoubtTime = 5 * time.Minute
	// maxDoubtBackoff bounds the time between two of them: ten tries take two to four minutes.
	maxDoubtBackoff = time.Minute
)

// Standing is what is known about the backend's refusals, to be kept over restarts.
type Standing struct {
	// Refusing says that the backend refuses whatever it is sent. Nothing is given up, and one message at a time is tried.
	Refusing bool
	Status   int       // the last with which it did
	Since    time.Time // it began
	// Heard are some of the devices that the backend has answered in the last day, at most 8, and when.
	Heard map[string]time.Time
	// Refused are devices that were refused since the backend last took a message, at most 8.
	Refused []string
}

// standing judges refusals over all devices of one backend. Forwarder.mu protects it.
type standing struct {
	refusing bool
	status   int
	since    time.Time
	heard    map[string]time.Time
	refused  map[string]struct{}
	aged     time.Time // when heard was last looked through
	said     time.Time // when the log was last told that the backend refuses
	told     bool      // it was, of this time
	changes  uint64    // of what is worth keeping
	taken    uint64    // requests that the backend took, 1 and more
}

// init takes what was kept.
func (s *standing) init(kept Standing) {
	s.taken = 1
	s.refusing, s.status, s.since = kept.Refusing, kept.Status, kept.Since
	s.heard, s.refused = make(map[string]time.Time), make(map[string]struct{})
	s.told = kept.Refusing
	for device, at := range kept.Heard {
		if len(s.heard) < standingDevices {
			s.heard[device] = at
		}
	}
	for _, device := range kept.Refused {
		if len(s.refused) < standingDevices {
			s.refused[device] = struct{}{}
		}
	}
}

func (s *standing) snapshot() Standing {
	return Standing{
		Refusing: s.refusing, Status: s.status, Since: s.since,
		Heard: maps.Clone(s.heard), Refused: slices.Sorted(maps.Keys(s.refused)),
	}
}

// hear notes that the backend has answered a device. It costs a look-up.
func (s *standing) hear(device string, now time.Time) {
	if _, known := s.heard[device]; known {
		s.heard[device] = now
		return
	}
	if len(s.heard) >= standingDevices {
		if now.Sub(s.aged) < time.Minute {
			return
		}
		s.age(now)
		if len(s.heard) >= standingDevices {
			return
		}
	}
	s.heard[device] = now
	s.changes++
}

// age forgets devices that have been silent for a day.
func (s *standing) age(now time.Time) {
	s.aged = now
	for device, at := range s.heard {
		if now.Sub(at) > heardWithin {
			delete(s.heard, device)
			delete(s.refused, device)
			s.changes++
		}
	}
}

// took notes that the backend has taken a message of the device. It reports whether that ended a refusal of everything.
func (s *standing) took(device string, now time.Time) (ended bool) {
	s.hear(device, now)
	if len(s.refused) > 0 {
		clear(s.refused)
		s.changes++
	}
	if !s.refusing {
		return false
	}
	s.refusing, s.since = false, time.Time{}
	s.changes++
	return true
}

// refuse notes that the backend has refused a message of the device with a status that may be its own state.
func (s *standing) refuse(device string, now time.Time) {
	s.age(now)
	s.hear(device, now)
	if _, already := s.refused[device]; !already && len(s.refused) < standingDevices {
		s.refused[device] = struct{}{}
		s.changes++
	}
}

// tell reports whether it is to be logged that the backend refuses everything: at most once a minute.
func (s *standing) tell(now time.Time) bool {
	if !s.said.IsZero() && now.Sub(s.said) < warnEvery {
		return false
	}
	s.said, s.told = now, true
	return true
}

// conclude notes that the backend refuses everything.
func (s *standing) conclude(status int, now time.Time) {
	news := !s.refusing
	if news {
		s.refusing, s.since = true, now
	}
	if news || s.status != status {
		s.status = status
		s.changes++
	}
}

// evidence is everything that decides what happens to a request once it is answered.
type evidence struct {
	means    Meaning
	together bool // more than one message was in the request
	refusing bool // the backend is known to refuse everything
	refused  int  // devices refused since the backend last took a message, those of this request included
	devices  int  // that there are, as far as is known
	between  bool // the backend has taken other messages since it last refused this one
	tries    int  // refusals of this message, this one included, that were not the backend's own state
	since    time.Duration
}

// judge decides. It is a pure function.
func (e evidence) judge() fate {
	switch e.means {
	case Taken:
		return delivered
	case Gone:
		return gone
	case RefusesAll:
		return kept
	case Doubtful:
		switch {
		case e.refusing || e.refused >= standingDevices:
			return kept
		case e.together:
			return split
		case e.refused >= max(1, e.devices) && !e.between: // all, where there are fewer
			return kept
		case e.tries >= maxDoubts || e.since >= maxDoubtTime:
			return dead
		}
		return doubted
	case Refused:
		if e.together {
			return split
		}
		return dead
	}
	return retry
}

// doubts are the refusals of one message that were not the backend's own state. The zero value: none.
type doubts struct {
	n     int
	time  time.Duration // between them, without the time in which the backend refused everything
	last  time.Time     // the last refusal, if it is one of them
	taken uint64        // what standing.taken was at the last refusal of any kind; 0: there was none
}

// judge decides on the result of the first request of a parcel, and notes what it says about the backend.
func (f *Forwarder) judge(p *parcel, means Meaning) (o fate, between bool) {
	first := &p.spans[0]
	e := evidence{means: means, together: first.n > 1}
	if e.means != Doubtful && e.means != RefusesAll {
		return e.judge(), false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	// Of several devices in one request, only one may be at fault.
	f.standing.refuse(p.device(), now)
	d := &p.doubts
	e.between = d.taken != 0 && d.taken != f.standing.taken
	d.taken = f.standing.taken
	e.refusing = f.standing.refusing
	e.refused, e.devices = f.refusedOf()
	e.tries, e.since = d.n+1, d.time
	if !d.last.IsZero() {
		e.since += now.Sub(d.last)
	}
	switch o = e.judge(); o {
	case doubted, dead:
		d.n, d.time, d.last = e.tries, e.since, now
	default:
		d.last = time.Time{}
	}
	return o, e.between
}

// maxLookedAt bounds how many lanes are looked at to find out how many devices there are.
const maxLookedAt = 1024

// refusedOf returns how many devices were refused since the backend last took a message, of how many that there are, as
// far as is known: the latter up to standingDevices. Devices of which nothing may be sent do not count, nor more than are
// registered. f.mu is held.
func (f *Forwarder) refusedOf() (refused, devices int) {
	for device := range f.standing.refused {
		if !f.off(device) {
			refused++
		}
	}
	heard := 0
	for device := range f.standing.heard {
		if !f.off(device) {
			heard++
		}
	}
	lookedAt := 0
	for device := range f.lanes {
		if lookedAt++; devices == standingDevices || lookedAt > maxLookedAt {
			break
		}
		if !f.off(device) {
			devices++
		}
	}
	devices = max(devices, heard)
	if f.cfg.Registered != nil {
		devices = min(devices, f.cfg.Registered())
	}
	return refused, devices
}

// doubtBackoff returns the time until the next try of a message that was refused so many times.
func doubtBackoff(doubts int) time.Duration {
	ceiling := min(maxDoubtBackoff, time.Second<<min(doubts-1, 6))
	return ceiling/2 + rand.N(ceiling/2)
}

// Standing returns what is to be kept over restarts, and a number that changes with it.
func (f *Forwarder) Standing() (s Standing, version uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.standing.snapshot(), f.standing.changes
}
