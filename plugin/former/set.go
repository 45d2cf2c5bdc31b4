package former

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/linefile"
	"mosquitto-bouncer/plugin/loop"
)

const (
	retryInterval = time.Second
	closeWithin   = 2 * time.Second
	// compactBeyond is how many bytes of superfluous lines are let pass.
	compactBeyond = 1 << 20
)

// A Registry is what a Set has to know of the registered devices when it is opened.
type Registry interface {
	// Serial returns the number of the registered device with this id, which is less than Serials.
	Serial(id []byte) (serial uint32, registered bool)
	Serials() uint32
	// IDs yields the id of every registered device, with its number.
	IDs() iter.Seq2[string, uint32]
}

// A Set holds the ids of devices that were removed, and not released since. Has and Complete may be called by any
// goroutine; they take no lock, wait for nothing and allocate nothing. Everything that writes to the disk is done by a
// goroutine that Close ends.
type Set struct {
	path string
	log  *slog.Logger

	removed  atomic.Pointer[map[string]struct{}] // before Open; a map that does not change
	released atomic.Pointer[map[string]struct{}] // since Open, and not registered since; nor does this one
	lost     atomic.Pointer[string]              // why ids may be missing; nil: none is
	failed   atomic.Pointer[string]              // why the file cannot be written; nil: it can

	mu      sync.Mutex // guards what follows, and the changing of the maps above
	pending []line
	waiting []chan error     // to be told when pending is on the disk
	reset   iter.Seq[string] // all that the file is to hold, see ReleaseAll; nil: nothing to do

	loop *loop.Loop

	serials uint32 // of the registry, when it was read

	// The goroutine's.
	file *linefile.File
}

type line struct {
	kind byte
	id   string
}

// Open reads the file at path, makes it if there is none, and notes every device that is registered and not in it yet.
// The error names the file; it is linefile.ErrHeader where the content is none that is known.
func Open(path string, registry Registry, log *slog.Logger) (*Set, error) {
	s := &Set{path: path, log: log}
	if err := s.read(registry); err != nil {
		return nil, err
	}
	s.loop = loop.New(log, "device ids", s.write)
	s.loop.Start()
	return s, nil
}

func (s *Set) read(registry Registry) (err error) {
	s.serials = registry.Serials()
	recorded := make([]bool, s.serials)
	removed := make(map[string]struct{})
	tooMany, damaged := false, false
	s.file, err = linefile.Open(s.path, header, func(text []byte) {
		kind, id := parse(text)
		if kind == lostLine {
			damaged = true
			return
		}
		if serial, ok := registry.Serial(id); ok {
			if serial < s.serials {
				recorded[serial] = kind == registeredLine
			}
			return
		}
		if kind == releasedLine {
			delete(removed, string(id))
		} else if _, known := removed[string(id)]; !known && len(removed) >= MaxIDs {
			tooMany = true
		} else if !known {
			removed[string(id)] = struct{}{}
		}
	})
	if err != nil {
		return err
	}
	s.removed.Store(&removed)
	s.released.Store(&map[string]struct{}{})
	for id, serial := range registry.IDs() {
		if serial >= s.serials || !recorded[serial] {
			s.pending = append(s.pending, line{registeredLine, id})
		}
	}
	switch {
	case damaged:
		s.lose("its file is damaged")
	case tooMany:
		s.lose(fmt.Sprintf("there are more than %d", MaxIDs))
	case s.file.Size() >= MaxFileBytes:
		s.lose(fmt.Sprintf("its file has reached %d bytes", MaxFileBytes))
	}
	return nil
}

// CatchUp notes the devices that were registered while Open read. From before the call on Registered must be told of
// every further one.
func (s *Set) CatchUp(registry Registry) {
	if registry.Serials() == s.serials {
		return
	}
	var ids []string
	for id, serial := range registry.IDs() {
		if serial >= s.serials {
			ids = append(ids, id)
		}
	}
	s.Registered(ids)
}

// lose notes that a removed id may be missing here.
func (s *Set) lose(why string) {
	if s.lost.Swap(&why) == nil {
		s.log.Error("some removed device ids are not remembered; until this is corrected, certificates that do not belong to a registered device "+
			"have no rights unless [acl] certificates names them: to forget the removed ids, run bouncerctl device release --all",
			"file", s.path, "why", why)
	}
}

// Has reports whether the device with this id, which is not registered, was removed and not released. since says that it
// was registered since Open.
func (s *Set) Has(id []byte, since bool) bool {
	if _, removed := (*s.removed.Load())[string(id)]; removed {
		return true
	}
	if !since {
		return false
	}
	_, released := (*s.released.Load())[string(id)]
	return !released
}

// Complete reports whether every removed id is known. Where it is not, any id may have been a device's.
func (s *Set) Complete() bool { return s.lost.Load() == nil }

// Len returns how many ids from before Open are known as removed.
func (s *Set) Len() int { return len(*s.removed.Load()) }

// Err returns why the file cannot be written just now; nil: it can.
func (s *Set) Err() error {
	if why := s.failed.Load(); why != nil {
		return errors.New(*why)
	}
	return nil
}

// Registered notes that devices were registered since Open. It returns at once.
func (s *Set) Registered(ids []string) {
	if len(ids) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	released := *s.released.Load()
	copied := false
	for _, id := range ids {
		if _, was := released[id]; was {
			if !copied {
				released, copied = maps.Clone(released), true
			}
			delete(released, id)
		}
		s.pending = append(s.pending, line{registeredLine, id})
	}
	if copied {
		s.released.Store(&released)
	}
	s.loop.Wake()
}

// Release forgets that devices were removed, which must not be registered now. It returns when that is on the disk.
func (s *Set) Release(ids []string) error {
	err := s.ask(func() {
		for _, id := range ids {
			s.pending = append(s.pending, line{releasedLine, id})
		}
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	removed, released := maps.Clone(*s.removed.Load()), maps.Clone(*s.released.Load())
	for _, id := range ids {
		delete(removed, id)
		released[id] = struct{}{}
	}
	s.removed.Store(&removed)
	s.released.Store(&released)
	return nil
}

// ReleaseAll forgets every removed id, and that any may have been lost. registered are the devices that are registered
// now, removed those that were removed since Open. It returns when that is on the disk.
func (s *Set) ReleaseAll(registered, removed iter.Seq[string]) error {
	if err := s.ask(func() { s.reset = registered }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	released := maps.Clone(*s.released.Load())
	for id := range removed {
		released[id] = struct{}{}
	}
	s.removed.Store(&map[string]struct{}{})
	s.released.Store(&released)
	s.lost.Store(nil)
	return nil
}

// ask leaves something for the goroutine, and waits until it is done.
func (s *Set) ask(leave func()) error {
	told := make(chan error, 1)
	s.mu.Lock()
	leave()
	s.waiting = append(s.waiting, told)
	s.loop.Wake()
	s.mu.Unlock()
	select {
	case err := <-told:
		return err
	case <-s.loop.Stopping():
		return errors.New("the broker stops")
	}
}

// Close ends the goroutine, which first writes what it has been given.
func (s *Set) Close() error {
	if !s.loop.Close(closeWithin) {
		return fmt.Errorf("%s: the disk does not answer", s.path)
	}
	return nil
}

// write appends what waits and tells those who wait for it; stopping, it also closes the file. It is the loop's round.
func (s *Set) write(stopping bool) time.Duration {
	if stopping {
		defer func() { _ = s.file.Close() }()
	}
	var waiting []chan error
	err := errors.New("internal error") // of a panic
	defer func() {
		for _, told := range waiting {
			told <- err
		}
	}()
	s.mu.Lock()
	pending, reset := s.pending, s.reset
	waiting = s.waiting
	s.pending, s.waiting, s.reset = nil, nil, nil
	s.mu.Unlock()
	err = nil
	if reset != nil {
		err = s.replace(reset, false)
	}
	if err == nil {
		err = s.append(pending)
	}
	if err != nil {
		s.mu.Lock()
		for _, l := range pending { // a release is asked for again by who waits for it
			if l.kind == registeredLine {
				s.pending = append(s.pending, l)
			}
		}
		s.mu.Unlock()
		why := fmt.Sprintf("%s cannot be written: %v", s.path, err)
		if s.failed.Swap(&why) == nil {
			s.log.Error("device ids cannot be stored; trying again every second. A device that is removed meanwhile is not confined after a restart",
				"file", s.path, "error", err)
		}
		return retryInterval
	}
	if s.failed.Swap(nil) != nil {
		s.log.Info("device ids can be stored again", "file", s.path)
	}
	return 0
}

func (s *Set) append(lines []line) error {
	if len(lines) == 0 {
		return nil
	}
	added := make([]byte, 0, 32*len(lines))
	var text []byte
	for _, l := range lines {
		text = append(append(text[:0], l.kind), l.id...)
		added = linefile.AppendLine(added, text)
	}
	fits := func() bool { return s.file.Size()+int64(len(added)) < MaxFileBytes }
	if !fits() || s.file.Grown(compactBeyond) {
		if err := s.compact(); err != nil {
			return err
		}
	}
	if !fits() {
		// Its size has to say so to the next start as well.
		s.lose(fmt.Sprintf("its file has reached %d bytes", MaxFileBytes))
		return s.file.Append(linefile.AppendLine(nil, []byte{lostLine}))
	}
	return s.file.Append(added)
}

// compact rewrites the file, with one line for each id that counts.
func (s *Set) compact() error {
	ids := make(map[string]struct{})
	lost := false
	err := s.file.Read(func(text []byte) {
		switch kind, id := parse(text); kind {
		case lostLine:
			lost = true
		case releasedLine:
			delete(ids, string(id))
		default:
			if _, known := ids[string(id)]; !known {
				ids[string(id)] = struct{}{}
			}
		}
	})
	if err != nil {
		return err
	}
	return s.replace(maps.Keys(ids), lost)
}

// replace has the file hold only these ids.
func (s *Set) replace(ids iter.Seq[string], lost bool) error {
	return s.file.Replace(func(yield func([]byte) bool) {
		if lost && !yield([]byte{lostLine}) {
			return
		}
		var text []byte
		for id := range ids {
			text = append(append(text[:0], registeredLine), id...)
			if !yield(text) {
				return
			}
		}
	})
}
