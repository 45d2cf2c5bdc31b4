// Package order brings an operator's orders from bouncerctl to the gateway, the only one that can carry them out: a directory
// in state_dir, a JSON file for each order. The gateway takes them once a second; where it does not run they wait for its
// next start. A file disappears when its order is carried out; one that cannot be is renamed and says why.
package order

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"mosquitto-bouncer/plugin/textfile"
)

// DirName is the directory's name in the state directory.
const DirName = "orders"

// Bounds.
const (
	maxBytes = 256 << 10 // of one file
	maxTaken = 64        // in one Take
	// MaxNames is how many ids or topics one order may name.
	MaxNames = 1000
)

const (
	suffix  = ".json"
	refused = ".refused"
	pollFor = 50 * time.Millisecond
)

// A Kind is what is to be done. The names are kept in files.
type Kind string

// The kinds of orders.
const (
	// Release has removed device ids no longer be confined; without Names all of them.
	Release Kind = "release"
	// ClearRetained has the broker forget what it retains on the topics Names, or on those of the devices Devices.
	ClearRetained Kind = "clear_retained"
)

// An Order is one of an operator's.
type Order struct {
	Kind    Kind     `json:"kind"`
	Names   []string `json:"names,omitempty"`
	Devices []string `json:"devices,omitempty"`
	// At is when it was given.
	At time.Time `json:"at"`
}

// ErrNotYet is returned by who cannot carry out an order just now: it is tried again, for as long as Patience.
var ErrNotYet = errors.New("not yet")

// Patience is for how long an order may be put off.
const Patience = time.Minute

// ErrWaiting says that an order was given and not carried out within the time: the broker does not run, or is busy.
var ErrWaiting = errors.New("the order waits: the broker does not run, or is busy; the order is carried out when it runs")

// MakeDir makes the directory, for the gateway.
func MakeDir(dir string) error {
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Give leaves an order in the directory, which must exist, and waits until it is carried out or ctx ends. The error is
// ErrWaiting in that case, and what the gateway says where it cannot carry it out.
func Give(ctx context.Context, dir string, o Order) error {
	if len(o.Names)+len(o.Devices) > MaxNames {
		return fmt.Errorf("more than %d at a time", MaxNames)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	// In the order in which they are given.
	path := filepath.Join(dir, fmt.Sprintf("%020d-%s%s", o.At.UnixNano(), rand.Text(), suffix))
	if err := write(path, text); err != nil {
		return err
	}
	ticker := time.NewTicker(pollFor)
	defer ticker.Stop()
	for {
		if why, err := os.ReadFile(path + refused); err == nil {
			_ = os.Remove(path + refused)
			return errors.New(strings.TrimSpace(string(why)))
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(path + refused); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ErrWaiting
		case <-ticker.C:
		}
	}
}

// write makes a file that appears whole. The gateway, whose user is another one, must be able to read it.
func write(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		_ = os.Remove(path + ".new")
	}
	return err
}

// Take has do carry out the orders that wait, oldest first. now is the time.
func Take(ctx context.Context, dir string, now time.Time, do func(Order) error) (failed error) {
	entries, err := os.ReadDir(dir) // by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !strings.HasSuffix(e.Name(), suffix) })
	for _, e := range entries[:min(len(entries), maxTaken)] {
		if ctx.Err() != nil {
			return nil
		}
		path := filepath.Join(dir, e.Name())
		o, err := read(path)
		if err == nil {
			err = do(o)
		}
		if errors.Is(err, ErrNotYet) {
			if now.Sub(o.At) < Patience && now.After(o.At.Add(-Patience)) {
				continue
			}
		}
		if err = finish(path, err); err != nil {
			failed = cmp.Or(failed, err) // it must not hold back those behind it
		}
	}
	return failed
}

// finish removes the file of an order, or leaves in its place why it was not carried out.
func finish(path string, why error) error {
	var noted error
	if why != nil {
		noted = os.WriteFile(path+refused, []byte(why.Error()+"\n"), 0o644)
	}
	return cmp.Or(os.Remove(path), noted)
}

func read(path string) (o Order, err error) {
	text, err := textfile.ReadRegular(path, maxBytes, syscall.O_NOFOLLOW, nil)
	if err != nil {
		return o, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return o, fmt.Errorf("not an order of this version: %w", err)
	}
	if o.Kind != Release && o.Kind != ClearRetained {
		return o, fmt.Errorf("unknown kind of order %q", o.Kind)
	}
	if len(o.Names)+len(o.Devices) > MaxNames {
		return o, fmt.Errorf("more than %d names", MaxNames)
	}
	return o, nil
}
