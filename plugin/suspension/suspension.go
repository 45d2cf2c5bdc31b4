// Package suspension keeps, over restarts, to which of the backend's URLs nothing is delivered because they answered
// 410 Gone: a directory with a file for each. An operator's program removes a file, and delivery continues.
package suspension

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// DirName is the directory's name in the state directory.
const DirName = "suspended"

// Names of the files. A device id may be "..", and "all".
const (
	everything = "all"
	ofDevice   = "device="
)

// maxURL is the size of the largest file that is read: for who is affected, and nothing depends on it.
const maxURL = 64 << 10

func fileName(device string) string {
	if device == "" {
		return everything
	}
	return ofDevice + device
}

// A Suspension is one URL that nothing is delivered to.
type Suspension struct {
	Device string // whose URL it is; "": that of all devices
	URL    string
	Since  time.Time
}

// List returns what is suspended, by device. There may be no directory.
func List(dir string) (list []Suspension, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		device, ok := strings.CutPrefix(e.Name(), ofDevice)
		if !ok && e.Name() != everything {
			continue
		}
		if !ok {
			device = ""
		}
		s := Suspension{Device: device}
		if info, err := e.Info(); err == nil {
			s.Since = info.ModTime()
			if info.Mode().IsRegular() && info.Size() <= maxURL {
				if url, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
					s.URL = strings.TrimSpace(string(url))
				}
			}
		}
		list = append(list, s)
	}
	return list, err
}

// Resume has delivery continue for a device, or of everything if device is "". The error is fs.ErrNotExist if it was not
// suspended.
func Resume(dir, device string) error { return os.Remove(filepath.Join(dir, fileName(device))) }

// A Set is the plugin's side. Its methods do I/O; they are safe for concurrent use.
type Set struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex // guards devices
	devices map[string]bool
}

// Open reads what earlier processes have noted in the directory, which need not exist.
func Open(dir string, log *slog.Logger) (s *Set, devices []string, err error) {
	list, err := List(dir)
	if err != nil {
		return nil, nil, err
	}
	s = &Set{dir: dir, log: log, devices: make(map[string]bool)}
	for _, suspended := range list {
		s.devices[suspended.Device] = true
		devices = append(devices, suspended.Device)
	}
	if len(list) > 0 {
		log.Warn("the backend has answered 410 Gone; delivery is suspended until bouncerctl queue resume", "urls", len(list),
			"first", list[0].URL)
	}
	return s, devices, nil
}

// Gone notes that the device's URL, or that of all devices if device is "", answered 410 Gone.
func (s *Set) Gone(device, url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices[device] = true
	err := os.Mkdir(s.dir, 0o750)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = os.WriteFile(filepath.Join(s.dir, fileName(device)), []byte(url+"\n"), 0o640)
	}
	if err != nil {
		// Follow then finds no file and has the backend asked again, which is what one would do.
		s.log.Error("the suspension of delivery could not be stored; trying again", "error", err)
	}
}

// Follow calls resume for each that an operator has resumed.
func (s *Set) Follow(resume func(device string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for device := range s.devices {
		if _, err := os.Lstat(filepath.Join(s.dir, fileName(device))); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		delete(s.devices, device)
		if resume(device) {
			s.log.Info("delivery is resumed", "device", device)
		}
	}
}
