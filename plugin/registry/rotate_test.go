package registry

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
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

// TestOldSecretsEndWithTheRegistration: nobody who registers the id anew inherits an old secret.
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
	if log.count("not followed") > 0 {
		t.Errorf("readers were kept out: %s", log)
	}
}

func newKey(t *testing.T) *Key {
	t.Helper()
	k, err := NewKey(GenerateKey())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKey(t *testing.T) {
	k := newKey(t)
	sealed := []byte(k.seal("a", []byte("secret")))
	if bytes.Contains(sealed, []byte("secret")) || bytes.Equal(sealed, []byte(k.seal("a", []byte("secret")))) {
		t.Errorf("%s", sealed)
	}
	if got, err := k.open([]byte("a"), sealed); err != nil || string(got) != "secret" {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := k.open([]byte("b"), sealed); !errors.Is(err, errAltered) {
		t.Errorf("another device's: %v", err)
	}
	if _, err := (*Key)(nil).open([]byte("a"), sealed); !errors.Is(err, errSealed) {
		t.Error(err)
	}
	if _, err := newKey(t).open([]byte("a"), sealed); !errors.Is(err, errOtherKey) {
		t.Error(err)
	}
	for i := range sealed {
		for _, bit := range []byte{1, 0x40} {
			altered := bytes.Clone(sealed)
			altered[i] ^= bit
			if got, err := k.open([]byte("a"), altered); err == nil && isSealed(altered) {
				t.Errorf("byte %d changed to %q: %q", i, altered[i], got)
			}
		}
		if got, err := k.open([]byte("a"), sealed[:i]); err == nil && isSealed(sealed[:i]) {
			t.Errorf("%d bytes: %q", i, got)
		}
	}
	for _, bad := range []string{"", "00", strings.Repeat("0", 63), strings.Repeat("0", 65), strings.Repeat("g", 64)} {
		if _, err := NewKey([]byte(bad)); err == nil {
			t.Errorf("key %q", bad)
		}
	}
}

func TestRecrypt(t *testing.T) {
	t.Parallel()
	for _, wal := range []bool{false, true} {
		path := newPath(t)
		db := pythonDatabase(t, path)
		if wal {
			execute(t, db, "PRAGMA journal_mode = WAL")
		}
		for i := range 1500 { // more than a page
			insert(t, db, fmt.Sprintf("d%d", i), fmt.Sprintf("plain text %d", i))
		}
		plain := openStore(t, path)
		if err := plain.Rotate(t.Context(), "d0", Secret("plain text new"), in(time.Hour)); err != nil {
			t.Fatal(err)
		}
		one, two := newKey(t), newKey(t)
		r, log := openRegistryWith(t, path, one)
		d1 := r.Lookup([]byte("d1"))
		recrypt := func(to, from *Key, want int) {
			t.Helper()
			if n, err := openStore(t, path, WithKey(to)).Recrypt(t.Context(), from); err != nil || n != want {
				t.Fatalf("%d, %v", n, err)
			}
		}
		found := func() bool {
			t.Helper()
			for _, suffix := range []string{"", "-wal", "-journal"} {
				if content, err := os.ReadFile(path + suffix); err == nil && bytes.Contains(content, []byte("plain text")) {
					return true
				}
			}
			return false
		}
		if !found() {
			t.Fatal("no plain text to begin with")
		}
		recrypt(one, nil, 1501)
		if found() {
			t.Error("plain text is left")
		}
		recrypt(one, nil, 0)
		// A plain-text device of another program is read beside them.
		insert(t, db, "d1500", "plain")
		r.has(t, "d1500", "plain")
		r.has(t, "d0", "plain text new", "plain text 0")
		if r.Lookup([]byte("d1")) != d1 {
			t.Error("an unchanged secret made a new device")
		}
		if secrets, err := openStore(t, path, WithKey(one)).Secrets(t.Context(), "d0"); err != nil || len(secrets) != 2 ||
			string(secrets[0]) != "plain text new" || string(secrets[1]) != "plain text 0" {
			t.Error(len(secrets), err)
		}
		if _, err := openStore(t, path, WithKey(two)).Recrypt(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Error(err)
		}
		if log.count("cannot be opened") > 0 {
			t.Error(log)
		}
		// Under a key that the registry does not have: what is known stays, a revocation counts, and nothing is new.
		recrypt(two, one, 1502)
		sealed := openStore(t, path, WithKey(two))
		add(t, sealed, "new", "x")
		if err := sealed.SetDisabled(t.Context(), "d3", true); err != nil {
			t.Fatal(err)
		}
		if err := sealed.Remove(t.Context(), "d4"); err != nil {
			t.Fatal(err)
		}
		r.becomes(t, "d3", "disabled plain text 3")
		r.becomes(t, "d4", "unknown")
		if got := r.state("new") + r.state("d5"); got != "unknownplain text 5" {
			t.Error(got)
		}
		if log.count("secrets cannot be opened") != 1 || log.count("no devices") != 0 {
			t.Error(log) // nobody is to remove them
		}
		if err := Check(t.Context(), path, WithKey(one)); err == nil || !strings.Contains(err.Error(), "key_file") {
			t.Errorf("checked with the wrong key: %v", err)
		}
		if err := Check(t.Context(), path, WithKey(two)); err != nil {
			t.Errorf("checked with the right key: %v", err)
		}
		if other, err := Open(path, log.logger(), WithKey(one)); err == nil || !strings.Contains(err.Error(), "key_file") {
			_ = other.Close()
			t.Errorf("opened with the wrong key: %v", err)
		}
		r.SetKey(two)
		r.becomes(t, "new", "x")
		recrypt(nil, two, 1502)
		if n := scalar[int](t, db, "SELECT count(*) FROM devices WHERE shared_secret GLOB '$bouncer*'"); n != 0 {
			t.Errorf("%d are still encrypted", n)
		}
	}
}

func TestEnvelopeIsNoSecret(t *testing.T) {
	s := openStore(t, newPath(t))
	if err := s.Add(t.Context(), "a", Secret(envelopeMark+"x")); err == nil || !strings.Contains(err.Error(), "use another") {
		t.Error(err)
	}
}

func TestBackup(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	for i := range 1000 {
		add(t, s, fmt.Sprintf("d%d", i), strings.Repeat("x", 64))
	}
	file := filepath.Join(t.TempDir(), "backup.db")
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		other := openStore(t, path)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				if err := other.Add(t.Context(), fmt.Sprintf("more%d", i), Secret("x")); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	err := s.Backup(t.Context(), file)
	close(stop)
	writer.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if got := scalar[string](t, openDatabase(t, file), "PRAGMA integrity_check"); got != "ok" {
		t.Error(got)
	}
	r, _ := openRegistry(t, file)
	if r.Len() < 1000 {
		t.Errorf("%d devices", r.Len())
	}
	if err := s.Backup(t.Context(), file); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
}

func add(t *testing.T, s *Store, id, secret string) {
	t.Helper()
	if err := s.Add(t.Context(), id, Secret(secret)); err != nil {
		t.Fatal(err)
	}
}

// TestRecryptWhileRead: where a reader keeps a write-ahead log from being emptied, the old secrets are still in a file, and
// that is said.
func TestRecryptWhileRead(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	plain := openStore(t, path)
	if err := plain.Add(t.Context(), "sensor_001", Secret("plainsecret")); err != nil {
		t.Fatal(err)
	}
	if _, err := plain.db.Exec("PRAGMA journal_mode = WAL"); err != nil {
		t.Fatal(err)
	}
	if err := plain.Add(t.Context(), "sensor_002", Secret("plainsecret")); err != nil {
		t.Fatal(err)
	}
	db, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	reader, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRow("SELECT count(*) FROM devices").Scan(&n); err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(GenerateKey())
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, path, WithKey(key))
	if _, err := s.Recrypt(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "run the command again") {
		t.Error(err)
	}
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recrypt(t.Context(), nil); err != nil {
		t.Error(err)
	}
	for _, end := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + end)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte("plainsecret")) {
			t.Errorf("%s has a secret in plain text", path+end)
		}
	}
}

// TestHealthWithoutKey: a gateway that cannot open secrets is unwell: it would not start again.
func TestHealthWithoutKey(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	if err := openStore(t, path).Add(t.Context(), "sensor_001", Secret("plainsecret")); err != nil {
		t.Fatal(err)
	}
	r, _ := openRegistry(t, path)
	key, err := NewKey(GenerateKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, path, WithKey(key)).Recrypt(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	unwell := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_, err := r.Health()
			if (err != nil) == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within 5 s: %v; health: %v", want, err)
			}
		}
	}
	unwell(true)
	if _, err := r.Health(); !strings.Contains(err.Error(), "key_file") {
		t.Error(err)
	}
	r.SetKey(key)
	unwell(false)

	other, err := NewKey(GenerateKey())
	if err != nil {
		t.Fatal(err)
	}
	r.SetKey(other)
	unwell(true)
	if _, err := openStore(t, path).Recrypt(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	unwell(false)
}
