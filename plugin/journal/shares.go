package journal

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Share is what one device has in the journal: its backlog, and the ids of its settled messages.
type Share struct {
	Device string
	Bytes  int64
}

// shares is what each device has in the journal. take belongs to the appending thread, and to Open before there is one;
// the other methods are safe for concurrent use.
type shares struct {
	limit int64 // bytes that a device may have; 0: any number

	mu      sync.Mutex // guards changes of the map, and reads but the appending thread's; never held during I/O
	devices map[string]*share
}

type share struct {
	device   string
	bytes    atomic.Int64
	refused  atomic.Uint64
	reported time.Time // the background's: when the log last named the device
}

func newShares(limit int64) shares { return shares{limit: limit, devices: make(map[string]*share)} }

// of returns the share of a device. The appending thread only.
func (s *shares) of(device string) *share {
	d := s.devices[device]
	if d == nil {
		d = &share{device: device}
		s.mu.Lock()
		s.devices[device] = d
		s.mu.Unlock()
	}
	return d
}

// add changes what a known device has.
func (s *shares) add(device string, bytes int64) {
	s.mu.Lock()
	d := s.devices[device]
	s.mu.Unlock()
	if d != nil {
		d.bytes.Add(bytes)
	}
}

// settle notes that a record of so many bytes in all is settled: its id is what is left of it.
func (s *shares) settle(device []byte, bytes int64) {
	s.mu.Lock()
	d := s.devices[string(device)]
	s.mu.Unlock()
	if d != nil {
		d.bytes.Add(idsOfSettled - bytes)
	}
}

// full reports whether so many bytes more are too many.
func (s *shares) full(d *share, bytes int64) bool {
	return s.limit > 0 && d.bytes.Load()+bytes > s.limit
}

// largest returns the n devices that have most, the very largest first.
func (s *shares) largest(n int) (largest []Share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devices {
		bytes := d.bytes.Load()
		if bytes <= 0 || len(largest) == n && bytes <= largest[n-1].Bytes {
			continue
		}
		i, _ := slices.BinarySearchFunc(largest, bytes, func(l Share, bytes int64) int { return cmp.Compare(bytes, l.Bytes) })
		largest = slices.Insert(largest, i, Share{d.device, bytes})
		largest = largest[:min(n, len(largest))]
	}
	return largest
}

// noteShare notes that a device's message was refused for its share. The appending thread only.
func (j *Journal) noteShare(device string) {
	d := j.shares.of(device)
	d.refused.Add(1)
	j.counts.overShare.Add(1)
	if j.culprit.Load() == nil {
		j.culprit.Store(d)
		j.poke()
	}
}

// shareInterval is how often the log names a device that has taken its share.
const shareInterval = time.Minute

// reportShare names the device in the log that was refused for its share last.
func (j *Journal) reportShare(now time.Time) {
	d := j.culprit.Swap(nil)
	if d == nil || now.Sub(d.reported) < shareInterval {
		return
	}
	d.reported = now
	j.log.Error("a device has used up its share of the journal ([journal] device_share); its messages are refused as overloaded, "+
		"those of other devices are not", "device", d.device, "bytes", d.bytes.Load(), "share", j.shares.limit, "refused", d.refused.Load())
}

// DeviceBytes returns what a device has in the journal. Safe for concurrent use.
func (j *Journal) DeviceBytes(device string) int64 {
	j.shares.mu.Lock()
	defer j.shares.mu.Unlock()
	if d := j.shares.devices[device]; d != nil {
		return d.bytes.Load()
	}
	return 0
}

// Largest returns the n devices that have most in the journal, the very largest first. It looks at every device. Safe for
// concurrent use.
func (j *Journal) Largest(n int) []Share { return j.shares.largest(n) }
