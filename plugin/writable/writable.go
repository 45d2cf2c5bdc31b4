// Package writable asks the gateway's stores, again and again and outside the broker's thread, whether they can be written
// now.
package writable

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/crash"
)

const (
	// Interval is the time between two looks at a store.
	Interval = time.Second
	// Limit is how long a store may take to answer. Until it does it is not asked again.
	Limit = 3 * time.Second
)

// A Checks is the list of stores. Add belongs before Start; the other methods are safe for concurrent use.
type Checks struct {
	log    *slog.Logger
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex // guards the states of stores; never held during a check
	stores []*store
}

type store struct {
	name  string
	check func(context.Context) error

	since time.Time // when the check that is under way began; zero: none is
	err   error     // of the latest
}

// New returns an empty list.
func New(log *slog.Logger) *Checks { return &Checks{log: log} }

// Add has a store looked at. check writes something, or finds out in another way whether that is possible; it is called
// by a goroutine of its own, never twice at once, with a context that ends after Limit.
func (c *Checks) Add(name string, check func(context.Context) error) {
	c.stores = append(c.stores, &store{name: name, check: check})
}

// Start begins to look. Stop ends it.
func (c *Checks) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.done.Go(func() {
		ticker := time.NewTicker(Interval)
		defer ticker.Stop()
		for {
			c.round(ctx)
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

// Stop ends the looking. It does not wait for a check that is under way.
func (c *Checks) Stop() {
	if c == nil || c.cancel == nil {
		return
	}
	c.cancel()
	c.done.Wait()
}

func (c *Checks) round(ctx context.Context) {
	for _, s := range c.stores {
		c.mu.Lock()
		busy := !s.since.IsZero()
		if !busy {
			s.since = time.Now()
		}
		c.mu.Unlock()
		if !busy {
			go c.look(ctx, s)
		}
	}
}

func (c *Checks) look(ctx context.Context, s *store) {
	limited, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	err := fmt.Errorf("%s: the check panicked", s.name)
	defer func() { c.note(ctx, s, err) }()
	defer crash.Log(c.log, "writable", "store", s.name)
	err = s.check(limited)
}

// note keeps the result of a check, and logs it when it changes.
func (c *Checks) note(ctx context.Context, s *store, err error) {
	if ctx.Err() != nil {
		return // it was stopped, which may be why
	}
	c.mu.Lock()
	before := s.err
	s.since, s.err = time.Time{}, err
	c.mu.Unlock()
	switch {
	case err != nil && before == nil:
		c.log.Error("a store cannot be written", "store", s.name, "error", err)
	case err == nil && before != nil:
		c.log.Info("a store can be written again", "store", s.name)
	}
}

// Wrong says which stores cannot be written.
func (c *Checks) Wrong() (wrong []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.stores {
		switch {
		case s.err != nil:
			wrong = append(wrong, fmt.Sprintf("%s cannot be written: %v", s.name, s.err))
		case !s.since.IsZero() && time.Since(s.since) > Limit:
			wrong = append(wrong, fmt.Sprintf("%s has not answered for %d s", s.name, int(time.Since(s.since).Seconds())))
		}
	}
	return wrong
}
