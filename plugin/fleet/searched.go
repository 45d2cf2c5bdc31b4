package fleet

import "sync"

// maxSearched bounds the devices in a searched. Beyond it, searches begin again.
const maxSearched = 1 << 17

// searched is up to where the stream need not be searched for messages of devices that have a backlog: a gateway has one
// message of a device under way at a time, so what follows one that was stored now is behind it. Without it each message
// of a backlog would be searched for among all those before it, and a search longer than an attempt would never end. Its
// methods are safe for concurrent use.
type searched struct {
	mu      sync.Mutex
	devices map[string]position
}

// A position is the sequence number in the stream up to which a message is not there.
type position struct {
	seq  uint64
	id   string // of the message; "": of every one that is still to come
	read int    // messages that the search for id has read
}

// from returns after which sequence number to search for a message, 0 if that is not known, and how many were read of it.
func (s *searched) from(device, id string) (seq uint64, read int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.devices[device]
	if p.id != "" && p.id != id {
		return 0, 0
	}
	return p.seq, p.read
}

// read notes how far the search for a message has come.
func (s *searched) read(device, id string, seq uint64, read int) {
	s.set(device, position{seq, id, read})
}

// stored notes that a message was stored. What follows one that was not old is not searched for: nothing is kept of it.
func (s *searched) stored(device string, seq uint64, old bool) {
	if old {
		s.set(device, position{seq: seq})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, device)
}

func (s *searched) set(device string, p position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.devices == nil || len(s.devices) >= maxSearched {
		s.devices = map[string]position{}
	}
	s.devices[device] = p
}

// forget is for a stream that was made again.
func (s *searched) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices = nil
}
