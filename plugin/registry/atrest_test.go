package registry

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/sqlite"
)

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
		// A plain-text device of another program is read as well.
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
		if log.Count("cannot be decrypted") > 0 {
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
		if log.Count("secrets cannot be decrypted") != 1 || log.Count("no devices") != 0 {
			t.Error(log) // an operator must not remove them
		}
		if err := Check(t.Context(), path, WithKey(one)); err == nil || !strings.Contains(err.Error(), "key_file") {
			t.Errorf("checked with the wrong key: %v", err)
		}
		if err := Check(t.Context(), path, WithKey(two)); err != nil {
			t.Errorf("checked with the right key: %v", err)
		}
		if other, err := Open(path, log.Logger(), WithKey(one)); err == nil || !strings.Contains(err.Error(), "key_file") {
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
