package registry

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/publickey"
)

func newPublicKey(tb testing.TB) *publickey.Key {
	tb.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	k, err := publickey.Of(public)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// keyed tells whether a device has these keys and no secret.
func (r *Registry) keyed(id string, want ...*publickey.Key) bool {
	d := r.Lookup([]byte(id))
	return d != nil && d.Secrets == nil && slices.EqualFunc(d.Keys(), want, (*publickey.Key).Equal)
}

func (r *Registry) becomesKeyed(tb testing.TB, id string, want ...*publickey.Key) {
	tb.Helper()
	within(tb, 2*time.Second, id+" has its keys", func() bool { return r.keyed(id, want...) })
}

// TestPublicKeys: a device with a public key is registered, found by the open registry and by one that is opened later,
// disabled, removed, and registered again with a secret, each by the change log alone.
func TestPublicKeys(t *testing.T) {
	t.Parallel()
	for _, atRest := range []*Key{nil, newKey(t)} {
		path := newPath(t)
		s := openStore(t, path, WithKey(atRest))
		add(t, s, "a", "one")
		r, log := openRegistryWith(t, path, atRest)
		var changes []Change
		told := make(chan []Change, 100)
		r.OnChanges(func(c []Change) { told <- c })
		key, pin := newPublicKey(t), Fingerprint{1}
		if err := s.Register(t.Context(), Registration{ID: "k", Key: key, Pin: pin}); err != nil {
			t.Fatal(err)
		}
		r.becomesKeyed(t, "k", key)
		if changes = <-told; !slices.Equal(changes, []Change{{"k", Added}}) {
			t.Errorf("told %v", changes)
		}
		if d := r.Lookup([]byte("k")); !d.Pinned() || !d.Allows(pin) {
			t.Error("the pin is not there")
		}
		later, _ := openRegistryWith(t, path, atRest)
		if !later.keyed("k", key) || later.state("a") != "one" {
			t.Error("not as it was after opening it again")
		}
		before := r.Lookup([]byte("k"))
		if err := s.SetDisabled(t.Context(), "k", true); err != nil {
			t.Fatal(err)
		}
		within(t, 2*time.Second, "disabled", func() bool { return r.Lookup([]byte("k")).Disabled })
		if after := r.Lookup([]byte("k")); after.Serial != before.Serial || after.Keys()[0] != before.Keys()[0] {
			t.Error("the serial changed, or the key was read again")
		}
		e, err := s.Get(t.Context(), "k")
		if err != nil || len(e.Keys) != 1 || !e.Keys[0].Key.Equal(key) || !e.SecretSince.IsZero() || time.Since(e.Keys[0].Since) > time.Minute || !e.Keys[0].Ends.IsZero() {
			t.Errorf("%+v, %v", e, err)
		}
		if _, err := s.Secrets(t.Context(), "k"); !errors.Is(err, ErrPublicKey) {
			t.Error(err)
		}
		if err := s.Rotate(t.Context(), "k", Secret("new"), time.Time{}); !errors.Is(err, ErrPublicKey) {
			t.Error(err)
		}
		if keys, err := s.Keys(t.Context(), "a"); err != nil || len(keys) > 0 {
			t.Errorf("%v, %v", keys, err)
		}
		if err := s.Remove(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		r.becomes(t, "k", "unknown")
		add(t, s, "k", "two")
		r.becomes(t, "k", "two")
		if log.Count("skipped") > 0 || log.Count("change log does not show") > 0 {
			t.Error(log)
		}
	}
}

// TestPublicKeysInUTF16: in a database in another encoding too.
func TestPublicKeysInUTF16(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	execute(t, openDatabase(t, path), "PRAGMA encoding = 'UTF-16be'; "+devicesTable)
	s := openStore(t, path)
	key, next := newPublicKey(t), newPublicKey(t)
	if err := s.Register(t.Context(), Registration{ID: "k", Key: key}); err != nil {
		t.Fatal(err)
	}
	if err := s.RotateKey(t.Context(), "k", next, in(time.Hour)); err != nil {
		t.Fatal(err)
	}
	r, _ := openRegistry(t, path)
	r.becomesKeyed(t, "k", next, key)
	if keys, err := s.Keys(t.Context(), "k"); err != nil || len(keys) != 2 {
		t.Errorf("%v, %v", keys, err)
	}
}

// TestNotBoth: a device with a secret and public keys is none, whatever program made it so; nor is one with neither. One
// that another program inserts in its place has the secret alone.
func TestNotBoth(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	key := newPublicKey(t)
	if err := s.Register(t.Context(), Registration{ID: "k", Key: key, Secret: Secret("s")}); err == nil {
		t.Error("registered with both")
	}
	r, log := openRegistry(t, path)
	db := openDatabase(t, path)
	for i, test := range []struct{ statement, becomes, why string }{
		{"UPDATE devices SET shared_secret = 'guessed' WHERE device_id = 'k'", "unknown", "a secret and public keys"},
		{"UPDATE devices SET shared_secret = '' WHERE device_id = 'k'", "unknown", "a secret and public keys"},
		{"DELETE FROM public_keys WHERE device_id = 'k'", "unknown", "type blob"},
		{"UPDATE public_keys SET expires_at = 1 WHERE device_id = 'k'", "unknown", "without an end"},
		{"UPDATE public_keys SET expires_at = 99999999999 WHERE device_id = 'k'", "unknown", "without an end"},
		{"UPDATE public_keys SET public_key = 'AAAA' WHERE device_id = 'k'", "unknown", "can be read"},
		{"UPDATE public_keys SET public_key = '%' WHERE device_id = 'k'", "unknown", "base64"},
		{"INSERT OR REPLACE INTO devices VALUES ('k', 'mine', 1)", "mine", ""},
	} {
		_ = s.Remove(t.Context(), "k")
		if err := s.Register(t.Context(), Registration{ID: "k", Key: key}); err != nil {
			t.Fatal(err)
		}
		r.becomesKeyed(t, "k", key)
		skipped := log.Count("skipped a row")
		execute(t, db, test.statement)
		r.becomes(t, "k", test.becomes)
		if test.why != "" && (log.Count("skipped a row") == skipped || !strings.Contains(fmt.Sprint(log), test.why)) {
			t.Errorf("%d: no line with %q", i, test.why)
		}
	}
	if n := scalar[int](t, db, "SELECT count(*) FROM public_keys"); n != 0 {
		t.Errorf("%d keys are left of what was replaced", n)
	}
	if _, err := db.Exec("INSERT INTO public_keys VALUES ('x', 'y', 1, NULL), ('x', 'z', 1, NULL)"); err == nil {
		t.Error("two keys without an end")
	}
}

// TestAStolenDatabaseHoldsNoSecret: for a device with a public key the database holds the public half, and a text in the place of
// the secret for no program that reads one: neither the Python gateway's query nor an earlier version takes it for a key.
func TestAStolenDatabaseHoldsNoSecret(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	key := newPublicKey(t)
	if err := s.Register(t.Context(), Registration{ID: "k", Key: key}); err != nil {
		t.Fatal(err)
	}
	db := openDatabase(t, path)
	if got := scalar[string](t, db, "SELECT typeof(shared_secret) || length(shared_secret) FROM devices WHERE device_id = 'k'"); got != "blob32" {
		t.Errorf("in the place of the secret: %s", got)
	}
	if got := scalar[string](t, db, "SELECT public_key FROM public_keys WHERE device_id = 'k'"); got != key.Text() {
		t.Errorf("the key is stored as %s", got)
	}
	if n, err := s.Recrypt(t.Context(), nil); err != nil || n != 0 {
		t.Errorf("%d secrets stored again, %v", n, err)
	}
}

// TestEarlierVersionOfTheDatabase: one of the version before is migrated with its devices, and what it cannot be given
// because it is read only is read as it is.
func TestEarlierVersionOfTheDatabase(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	add(t, s, "a", "one")
	execute(t, openDatabase(t, path), `DROP TABLE public_keys; DROP TRIGGER devices_insert_keys; DROP TRIGGER devices_delete_keys; PRAGMA user_version = 2`)
	r, _ := openRegistry(t, path)
	if got := r.state("a"); got != "one" {
		t.Errorf("a is %s", got)
	}
	key := newPublicKey(t)
	if err := s.Register(t.Context(), Registration{ID: "k", Key: key}); err != nil {
		t.Fatal(err)
	}
	r.becomesKeyed(t, "k", key)
}

// TestRotateKey: a new key is accepted with the old ones, until they end; at most so many at once; and of the certificate's key
// that a renewal brings the new one.
func TestRotateKey(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	keys := make([]*publickey.Key, 7)
	for i := range keys {
		keys[i] = newPublicKey(t)
	}
	if err := s.Register(t.Context(), Registration{ID: "k", Key: keys[0]}); err != nil {
		t.Fatal(err)
	}
	add(t, s, "a", "one")
	r, _ := openRegistry(t, path)
	told := make(chan []Change, 100)
	r.OnChanges(func(c []Change) { told <- c })
	rotate := func(key *publickey.Key, grace time.Duration, want error) {
		t.Helper()
		if err := s.RotateKey(t.Context(), "k", key, in(grace)); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
	}
	serial := r.Lookup([]byte("k")).Serial
	rotate(keys[1], time.Hour, nil)
	r.becomesKeyed(t, "k", keys[1], keys[0])
	if changes := <-told; !slices.Equal(changes, []Change{{"k", NewKeys}}) {
		t.Errorf("told %v", changes)
	}
	rotate(keys[1], time.Hour, ErrSameKey)
	rotate(keys[2], time.Second, nil)
	r.becomesKeyed(t, "k", keys[2], keys[1], keys[0])
	within(t, 5*time.Second, "one ends by itself", func() bool { return r.keyed("k", keys[2], keys[0]) })
	rotate(keys[3], time.Hour, nil)
	rotate(keys[4], time.Hour, nil)
	rotate(keys[5], time.Hour, ErrTooManyKeys)
	rotate(keys[0], 0, nil) // an old one again, and it alone
	r.becomesKeyed(t, "k", keys[0])
	if got := r.Lookup([]byte("k")).Serial; got != serial {
		t.Errorf("serial %d, was %d", got, serial)
	}
	if later, _ := openRegistry(t, path); !later.keyed("k", keys[0]) {
		t.Error("another state after opening it again")
	}
	if err := s.RotateKey(t.Context(), "a", keys[0], time.Time{}); !errors.Is(err, ErrNoPublicKey) {
		t.Error(err)
	}
	if err := s.RotateKey(t.Context(), "nobody", keys[0], time.Time{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}

	of := func(k *publickey.Key) func() (*publickey.Key, error) {
		return func() (*publickey.Key, error) { return k, nil }
	}
	if err := s.Register(t.Context(), Registration{ID: "c", Key: keys[1], KeyOfCertificate: true, CertificateExpires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*publickey.Key{keys[2], keys[2]} {
		if err := s.RenewCertificate(t.Context(), "c", time.Now().Add(2*time.Hour), Fingerprint{1}, of(k)); err != nil {
			t.Fatal(err)
		}
		r.becomesKeyed(t, "c", keys[2], keys[1])
	}
	if e, err := s.Get(t.Context(), "c"); err != nil || len(e.Keys) != 2 || !e.Keys[0].OfCertificate || time.Until(e.Keys[1].Ends) > time.Hour {
		t.Errorf("%+v, %v", e, err)
	}
	if err := s.RenewCertificate(t.Context(), "k", time.Now().Add(time.Hour), Fingerprint{1}, of(keys[6])); err != nil || !r.keyed("k", keys[0]) {
		t.Errorf("a key of its own was replaced, or %v", err)
	}
	refused := errors.New("refused")
	err := s.RenewCertificate(t.Context(), "c", time.Now().Add(9*time.Hour), Fingerprint{1}, func() (*publickey.Key, error) { return nil, refused })
	if e, _ := s.Get(t.Context(), "c"); !errors.Is(err, refused) || time.Until(e.CertificateExpires) > 3*time.Hour {
		t.Errorf("half of it was done: %v", err)
	}
}

// TestEndOldKeysNow: rotating to the key that the device has ends the old ones where there is no grace, as for one that was
// stolen; a certificate's key stays that.
func TestEndOldKeysNow(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	first, next := newPublicKey(t), newPublicKey(t)
	if err := s.Register(t.Context(), Registration{ID: "c", Key: first, KeyOfCertificate: true, CertificateExpires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := s.RotateKey(t.Context(), "c", first, time.Time{}); !errors.Is(err, ErrSameKey) {
		t.Errorf("without an old key: %v", err)
	}
	if err := s.RenewCertificate(t.Context(), "c", time.Now().Add(2*time.Hour), Fingerprint{1}, func() (*publickey.Key, error) { return next, nil }); err != nil {
		t.Fatal(err)
	}
	r, _ := openRegistry(t, path)
	if !r.keyed("c", next, first) {
		t.Fatal("not renewed")
	}
	if err := s.RotateKey(t.Context(), "c", next, in(time.Hour)); !errors.Is(err, ErrSameKey) {
		t.Errorf("with grace: %v", err)
	}
	if err := s.RotateKey(t.Context(), "c", next, time.Time{}); err != nil {
		t.Fatal(err)
	}
	r.becomesKeyed(t, "c", next)
	if e, err := s.Get(t.Context(), "c"); err != nil || len(e.Keys) != 1 || !e.Keys[0].OfCertificate {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestPlaceholderBecomesNoSecret: what is in the place of a secret is no old secret after a rotation, where the device's keys
// were lost.
func TestPlaceholderBecomesNoSecret(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := openStore(t, path)
	if err := s.Register(t.Context(), Registration{ID: "k", Key: newPublicKey(t)}); err != nil {
		t.Fatal(err)
	}
	db := openDatabase(t, path)
	execute(t, db, "DELETE FROM public_keys")
	if err := s.Rotate(t.Context(), "k", Secret("new"), in(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := scalar[int](t, db, "SELECT count(*) FROM old_secrets"); n != 0 {
		t.Errorf("%d old secrets", n)
	}
	if r, _ := openRegistry(t, path); r.state("k") != "new" {
		t.Errorf("k is %s", r.state("k"))
	}
}
