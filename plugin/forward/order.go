package forward

// Without order, a lane stays in the queue of those that are ready while messages of its own are under way: it takes its
// turn again and again, and the other lanes theirs in between.

// flight is how many parcels with messages of one lane there are, without order.
type flight struct {
	parcels  int // in flight, waiting, suspended or blocked
	inFlight int
}

// maxAhead is how many parcels one lane may have, for each worker: enough for all workers, though some messages wait for
// their next attempt.
const maxAhead = 2

// launched and landedOf count the parcels of each lane that are in flight.
func (s *schedule) launched(p *parcel) {
	if s.unordered {
		for _, part := range p.parts {
			s.flights[part.lane].inFlight++
		}
	}
}

func (s *schedule) landedOf(p *parcel) {
	if s.unordered {
		for _, part := range p.parts {
			s.flights[part.lane].inFlight--
		}
	}
}

// mayRunAhead reports whether more of a lane may be sent, though some of it is under way. Of one that fails, one more
// message at a time finds out whether it still does.
func (s *schedule) mayRunAhead(l *lane) bool {
	if !s.unordered {
		return false
	}
	f := s.flights[l]
	if f == nil {
		return true
	}
	return f.parcels < maxAhead*s.workersAtMost && (l.failures == 0 || f.inFlight == 0)
}

// advance makes a lane ready that has something to send and may.
func (s *schedule) advance(l *lane) {
	if l.n == 0 || l.state == ready || s.off(l.device) {
		return
	}
	if l.state == parked || s.mayRunAhead(l) {
		s.enlist(l)
	}
}

// hold takes a lane that is off out of those that are ready.
func (s *schedule) hold(l *lane) {
	if l.state != ready {
		return
	}
	s.ready.remove(l)
	s.readyN -= int(l.n)
	l.state = parked
}

// remove takes a lane out of the queue. It looks at those before it.
func (q *lanes) remove(l *lane) {
	var before *lane
	for at := q.first; at != nil; before, at = at, at.next {
		if at != l {
			continue
		}
		if before == nil {
			q.first = l.next
		} else {
			before.next = l.next
		}
		if q.last == l {
			q.last = before
		}
		l.next = nil
		return
	}
}
