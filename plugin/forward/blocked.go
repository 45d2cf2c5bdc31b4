package forward

import "time"

// block keeps p, the first message of which is a dead letter that the Store has no room for, and what follows it of its
// device from being sent. It reports whether that is news.
func (s *schedule) block(p *parcel) bool {
	l := p.parts[0].lane
	first, already := s.blocked[l.device]
	p.also = first
	s.blocked[l.device] = p
	s.hold(l)
	return !already
}

// unblock has the Store asked again to keep the device's dead letter, and then continues with the lane.
func (s *schedule) unblock(device string, now time.Time) bool {
	return s.letGo(s.blocked, device, now)
}

// letGo takes a device out of those that are held, which is s.blocked or s.suspended; it reports whether it was there.
func (s *schedule) letGo(held map[string]*parcel, device string, now time.Time) bool {
	p, is := held[device]
	delete(held, device)
	s.free(p, now)
	if l := s.lanes[device]; is && l != nil {
		s.advance(l)
	}
	return is
}

// free has parcels that were kept sent.
func (s *schedule) free(p *parcel, now time.Time) {
	for p != nil {
		next := p.also
		p.also = nil
		s.wait(p, now, 0)
		p = next
	}
}

// off reports whether nothing of the device is to be sent for now.
func (s *schedule) off(device string) bool {
	if len(s.suspended) == 0 && len(s.blocked) == 0 {
		return false
	}
	_, suspended := s.suspended[device]
	_, blocked := s.blocked[device]
	return suspended || blocked
}

// Blocked returns up to n devices of which nothing is sent because the Store has no room for a dead letter of theirs.
func (f *Forwarder) Blocked(n int) (devices []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for device := range f.blocked {
		if len(devices) == n {
			break
		}
		devices = append(devices, device)
	}
	return devices
}

// Unblock continues with a device of Blocked: the Store is asked again to keep its dead letter.
func (f *Forwarder) Unblock(device string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.schedule.unblock(device, time.Now()) {
		f.idle.Signal()
	}
}
