package registry

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// secrets are a device's, as the registry has them, newest first.
func (r *Registry) secrets(id string) (all []string) {
	if d := r.Lookup([]byte(id)); d != nil {
		for _, s := range d.Secrets {
			all = append(all, string(s))
		}
	}
	return all
}

func (r *Registry) has(tb testing.TB, id string, want ...string) {
	tb.Helper()
	within(tb, time.Second, fmt.Sprintf("%s has %q", id, want), func() bool { return slices.Equal(r.secrets(id), want) })
}

// in is a whole second at least d from now; the zero time for none.
func in(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d + time.Second - 1).Truncate(time.Second)
}

func TestRotate(t *testing.T) {
	t.Parallel()
	for _, key := range []*Key{nil, newKey(t)} {
		path := newPath(t)
		s := openStore(t, path, WithKey(key))
		add(t, s, "a", "one")
		r, _ := openRegistryWith(t, path, key)
		serial := r.Lookup([]byte("a")).Serial
		rotate := func(secret string, grace time.Duration) {
			t.Helper()
			if err := s.Rotate(t.Context(), "a", Secret(secret), in(grace)); err != nil {
				t.Fatal(err)
			}
		}
		rotate("two", time.Hour)
		r.has(t, "a", "two", "one")
		start := time.Now()
		rotate("three", time.Second)
		r.has(t, "a", "three", "two", "one")
		within(t, 3*time.Second, "two ends by itself", func() bool { return slices.Equal(r.secrets("a"), []string{"three", "one"}) })
		if took := time.Since(start); took < time.Second {
			t.Errorf("ended after %v", took)
		}
		if e, err := s.Get(t.Context(), "a"); err != nil || len(e.OldSecrets) != 1 || e.SecretSince.Before(start.Truncate(time.Second)) {
			t.Errorf("%+v, %v", e, err)
		}
		rotate("four", time.Hour)
		rotate("five", time.Hour)
		if err := s.Rotate(t.Context(), "a", Secret("six"), in(time.Hour)); !errors.Is(err, ErrTooManySecrets) {
			t.Error(err)
		}
		rotate("six", 0)
		r.has(t, "a", "six")
		if got := r.Lookup([]byte("a")).Serial; got != serial {
			t.Errorf("serial %d, was %d", got, serial)
		}
		if err := s.Rotate(t.Context(), "nobody", Secret("x"), time.Time{}); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
}

// TestOldSecretsEndWithTheRegistration: a new registration of the id inherits no old secret.
func TestOldSecretsEndWithTheRegistration(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db := pythonDatabase(t, path)
	insert(t, db, "a", "one")
	s := openStore(t, path)
	r, _ := openRegistry(t, path)
	if err := s.Rotate(t.Context(), "a", Secret("two"), in(time.Hour)); err != nil {
		t.Fatal(err)
	}
	r.has(t, "a", "two", "one")
	insert(t, db, "a", "three") // INSERT OR REPLACE
	r.has(t, "a", "three")
	if err := s.Rotate(t.Context(), "a", Secret("four"), in(time.Hour)); err != nil {
		t.Fatal(err)
	}
	execute(t, db, "DELETE FROM devices")
	execute(t, db, "INSERT INTO devices VALUES ('a', 'five', 0)")
	r.has(t, "a", "five")
}

// TestSecretEndsWithoutTheDatabase: what was to end does, also when the database has gone.
func TestSecretEndsWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	add(t, s, "a", "one")
	if err := s.Rotate(t.Context(), "a", Secret("two"), in(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	r, _ := openRegistry(t, path)
	r.has(t, "a", "two", "one")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "one ends", func() bool { return slices.Equal(r.secrets("a"), []string{"two"}) })
}

func TestPins(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	add(t, s, "a", "one")
	r, _ := openRegistry(t, path)
	one, two, three := Fingerprint{1}, Fingerprint{2}, Fingerprint{3}
	allows := func(want ...bool) {
		t.Helper()
		within(t, time.Second, fmt.Sprint("allows ", want), func() bool {
			d := r.Lookup([]byte("a"))
			return slices.Equal(want, []bool{d.Allows(one), d.Allows(two), d.Allows(three)})
		})
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	allows(true, true, true)
	do(s.SetCertificate(t.Context(), "a", time.Unix(2e9, 0), two))
	allows(true, true, true) // nothing was pinned
	do(s.Pin(t.Context(), "a", one))
	allows(true, false, false)
	do(s.SetCertificate(t.Context(), "a", time.Unix(2e9, 0), two))
	allows(true, true, false)
	do(s.Rotate(t.Context(), "a", Secret("two"), in(time.Hour)))
	r.has(t, "a", "two", "one")
	allows(true, true, false)
	if e, err := s.Get(t.Context(), "a"); err != nil || len(e.Pins) != 2 || e.CertificateExpires.Unix() != 2e9 {
		t.Errorf("%+v, %v", e, err)
	}
	do(s.Pin(t.Context(), "a"))
	allows(true, true, true)
	if err := s.Pin(t.Context(), "nobody", one); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.SetCertificate(t.Context(), "nobody", time.Now(), one); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	// A pin that cannot be read must not count as none.
	execute(t, openDatabase(t, path), "INSERT INTO pinned_certificates VALUES ('a', 'rubbish')")
	r.becomes(t, "a", "unknown")
}

func TestChangesAreTold(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	add(t, s, "a", "one")
	r, _ := openRegistry(t, path)
	var mu sync.Mutex
	var told []Change
	r.OnChanges(func(c []Change) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, c...)
	})
	for _, step := range []struct {
		do   func() error
		want Change
	}{
		{func() error { return s.SetDisabled(t.Context(), "a", true) }, Change{"a", Disabled}},
		{func() error { return s.SetDisabled(t.Context(), "a", false) }, Change{"a", Enabled}},
		{func() error { return s.Rotate(t.Context(), "a", Secret("two"), in(time.Second)) }, Change{"a", NewSecrets}},
		{func() error { return nil }, Change{"a", NewSecrets}}, // the old one ends
		{func() error { return s.Pin(t.Context(), "a", Fingerprint{1}) }, Change{"a", Certificate}},
		{func() error { return s.Add(t.Context(), "b", Secret("x")) }, Change{"b", Added}},
		{func() error { return s.Remove(t.Context(), "a") }, Change{"a", Removed}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		within(t, 4*time.Second, fmt.Sprint(step.want), func() bool {
			mu.Lock()
			defer mu.Unlock()
			if len(told) == 0 {
				return false
			}
			if len(told) > 1 || told[0] != step.want {
				t.Fatalf("%v, want %v", told, step.want)
			}
			told = nil
			return true
		})
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	r, log := openRegistry(t, path)
	const n = 20_000 // more than fits into SQLite's cache
	devices := func(last error) iter.Seq2[Registration, error] {
		return func(yield func(Registration, error) bool) {
			for i := range n {
				if !yield(Registration{ID: fmt.Sprintf("d%d", i), Secret: Secret(strings.Repeat("x", 64))}, nil) {
					return
				}
			}
			if last != nil {
				yield(Registration{}, last)
			}
		}
	}
	bad := errors.New("bad line")
	if _, err := s.Import(t.Context(), devices(bad)); !errors.Is(err, bad) {
		t.Error(err)
	}
	if got := scalar[int](t, openDatabase(t, path), "SELECT count(*) FROM devices"); got != 0 {
		t.Errorf("%d devices after an import that failed", got)
	}
	if got, err := s.Import(t.Context(), devices(nil)); err != nil || got != n {
		t.Errorf("%d, %v", got, err)
	}
	within(t, 2*time.Second, "followed", func() bool { return r.Len() == n })
	if _, err := s.Import(t.Context(), devices(nil)); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if log.Count("cannot be read") > 0 {
		t.Errorf("readers were kept out: %s", log)
	}
}
