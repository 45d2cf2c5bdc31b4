package downlink

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/testkit"
)

// aFleet is a Registry of one device, which may be replaced.
type aFleet struct {
	device atomic.Pointer[registry.Device]
}

func (f *aFleet) Lookup(id []byte) *registry.Device {
	if d := f.device.Load(); d != nil && d.ID == string(id) {
		return d
	}
	return nil
}

// set gives the device other secrets.
func (f *aFleet) set(secrets ...registry.Secret) {
	f.device.Store(&registry.Device{ID: "sensor_001", Secrets: secrets})
}

// keyed gives the device a public key, as the registry has it.
func (f *aFleet) keyed(t *testing.T, a publickey.Algorithm) {
	t.Helper()
	key, err := publickey.Of(testkit.PrivateKey(t, string(a)).Public())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "devices.db")
	store, err := registry.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	err = store.Register(t.Context(), registry.Registration{ID: "sensor_001", Key: key})
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.device.Store(r.Lookup([]byte("sensor_001")))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// aBroker keeps what it is given.
type aBroker struct {
	published []mqtt.Message
	refuses   bool
}

func (b *aBroker) Publish(m mqtt.Message) error {
	if b.refuses {
		return errors.New("refused")
	}
	b.published = append(b.published, m)
	return nil
}

// someCommands are Commands of one device. The test is the broker's thread.
type someCommands struct {
	*Commands
	t      *testing.T
	fleet  *aFleet
	broker *aBroker
	down   *Dispatcher
}

func startCommands(t *testing.T, keys *commandkey.Set, log *slog.Logger) *someCommands {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &someCommands{t: t, fleet: new(aFleet), broker: new(aBroker)}
	s.down = NewDispatcher(s.broker, func() {}, log)
	var err error
	s.Commands, err = StartCommands(CommandOptions{
		StateDir: t.TempDir(), Topic: "device/{device_id}/command", Registry: s.fleet, Keys: keys, Log: log,
	}, s.down)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// order creates a command, and sends it.
func (s *someCommands) order() command.Command {
	s.t.Helper()
	c, _, err := s.Create(context.Background(), command.Request{Device: "sensor_001", Body: []byte(`1`), TTL: time.Hour})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Send(c)
	return c
}

// given drains until the broker has been given n messages since the start, waits until the store knows, and returns the last.
func (s *someCommands) given(n int) *envelope.Envelope {
	s.t.Helper()
	testkit.Eventually(s.t, "a message for the broker", func() bool { s.down.Drain(); return len(s.broker.published) >= n })
	e, err := new(envelope.Decoder).Decode(s.broker.published[n-1].Payload)
	if err != nil {
		s.t.Fatal(err)
	}
	testkit.Eventually(s.t, "it is noted as sent", func() bool {
		all := s.store.Unfinished("sensor_001", time.Now())
		return len(all) == 1 && all[0].State == command.Sent
	})
	return e
}

// quiet checks that nothing is given to the broker for longer than a repetition takes.
func (s *someCommands) quiet() {
	s.t.Helper()
	before := len(s.broker.published)
	for end := time.Now().Add(commandRetry + 1500*time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.down.Drain()
	}
	if n := len(s.broker.published) - before; n > 0 {
		s.t.Errorf("%d messages more", n)
	}
}

// TestResendIsNotLost: a command that was on its way when the credential changed is sent again with the new one, also if the goroutine
// looks at it before the broker's thread has let go of it.
func TestResendIsNotLost(t *testing.T) {
	t.Parallel()
	s := startCommands(t, nil, nil)
	s.fleet.set(registry.Secret("one"))
	s.order()
	s.given(1)
	time.Sleep(commandRetry + 10*time.Millisecond) // the least time between two deliveries
	s.resend("sensor_001")
	testkit.Eventually(s.t, "it is on its way again", func() bool { return s.queue.Len() == 1 })
	s.fleet.set(registry.Secret("two"))
	s.queue.Drain(func(p Publish) {
		if p.Good() {
			t.Error("it is good with the old secret")
		}
		time.Sleep(50 * time.Millisecond) // the goroutine looks at it
		p.Done(false)
	})
	if e := s.given(2); !envelope.NewVerifier([]byte("two")).Verify(e) {
		t.Error("it is not signed with the new secret")
	}
}

func commandKeys(t *testing.T, from time.Time) *commandkey.Set {
	t.Helper()
	set, err := (*commandkey.Set)(nil).With(from, from, commandkey.Algorithms()...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestKeysThatDoNotSignYet: a new key that is to sign later, and one of another algorithm, send nothing again; a key that signs in the place of
// another one does.
func TestKeysThatDoNotSignYet(t *testing.T) {
	t.Parallel()
	now := time.Now()
	keys := commandKeys(t, now)
	s := startCommands(t, keys, nil)
	s.fleet.keyed(t, publickey.Ed25519)
	s.order()
	s.given(1)
	later, err := keys.With(now, now.Add(time.Hour), commandkey.Algorithms()...)
	if err != nil {
		t.Fatal(err)
	}
	s.SetKeys(later)
	s.quiet()
	other, err := later.With(now, now, publickey.P256)
	if err != nil {
		t.Fatal(err)
	}
	s.SetKeys(other)
	s.quiet()
	stolen, err := other.With(now, now, publickey.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	s.SetKeys(stolen)
	if e := s.given(2); !envelope.NewKeyVerifier(stolen.Signing(publickey.Ed25519, now).Public()).Verify(e) {
		t.Error("it is not signed with the new key")
	}
}

// TestWithoutKey: commands that cannot be signed do not fill the log, and are sent when there is a key.
func TestWithoutKey(t *testing.T) {
	t.Parallel()
	lines := new(testkit.Log)
	keys := commandKeys(t, time.Now())
	s := startCommands(t, keys, lines.Logger())
	s.fleet.keyed(t, publickey.Ed25519)
	c, _, err := s.Create(t.Context(), command.Request{Device: "sensor_001", Body: []byte(`1`), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s.SetKeys(nil)
	s.Send(c)
	s.quiet()
	s.quiet()
	if n := lines.Count("is not sent"); n != 1 {
		t.Errorf("%d lines in the log:\n%s", n, lines)
	}
	if _, _, err := s.Create(t.Context(), command.Request{Device: "sensor_001", Body: []byte(`1`), TTL: time.Hour}); !errors.As(err, new(NoCommandKeyError)) {
		t.Error(err)
	}
	s.SetKeys(keys)
	s.given(1)
}

// TestRegisteredAgain: what was sent to a device that was removed meanwhile, and registered with another credential, is sent again.
func TestRegisteredAgain(t *testing.T) {
	t.Parallel()
	keys := commandKeys(t, time.Now())
	s := startCommands(t, keys, nil)
	s.fleet.set(registry.Secret("one"))
	s.order()
	s.given(1)
	s.fleet.device.Store(nil)
	s.CredentialsChanged([]registry.Change{{ID: "sensor_001", What: registry.Removed}})
	s.quiet()
	s.fleet.keyed(t, publickey.Ed25519)
	s.CredentialsChanged([]registry.Change{{ID: "sensor_001", What: registry.Added}})
	if e := s.given(2); !envelope.NewKeyVerifier(keys.Signing(publickey.Ed25519, time.Now()).Public()).Verify(e) {
		t.Error("it is not signed with the gateway's key")
	}
	// Of others, however many, nothing is sent again.
	many := make([]registry.Change, maxResent+1)
	for i := range many {
		many[i] = registry.Change{ID: "other", What: registry.Added}
	}
	s.CredentialsChanged(many)
	s.quiet()
}

// TestSentInTheFuture: a command that was sent when the clock was ahead is sent again to a device that subscribes.
func TestSentInTheFuture(t *testing.T) {
	t.Parallel()
	s := startCommands(t, nil, nil)
	s.fleet.set(registry.Secret("one"))
	c := s.order()
	s.given(1)
	s.store.Sent(c.ID, time.Now().Add(time.Hour))
	testkit.Eventually(t, "the store knows", func() bool {
		all := s.store.Unfinished("sensor_001", time.Now())
		return all[0].SentAt.After(time.Now())
	})
	s.Subscribed([]byte("sensor_001"), []byte("device/sensor_001/command"))
	s.given(2)
	s.quiet()
}

// TestBrokerRefuses: a command that the broker does not take is tried again, and not more often than once a second.
func TestBrokerRefuses(t *testing.T) {
	t.Parallel()
	s := startCommands(t, nil, nil)
	s.fleet.set(registry.Secret("one"))
	s.order()
	s.given(1)
	time.Sleep(commandRetry + 10*time.Millisecond)
	s.broker.refuses = true
	s.resend("sensor_001")
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.down.Drain()
	}
	if n := s.down.refused.Load(); n < 2 || n > 4 {
		t.Errorf("it was tried %d times in 2.5 s", n)
	}
	s.broker.refuses = false
	s.given(2)
	s.quiet()
}
