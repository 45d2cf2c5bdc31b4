package gate

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/testkit"
)

func newSigner(t testing.TB, a publickey.Algorithm) *publickey.Signer {
	t.Helper()
	private := testkit.PrivateKey(t, string(a))
	s, err := publickey.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// registerKey has a device with a public key in the place of the one of that id, as a registry has it.
func (b *aBench) registerKey(id string, key *publickey.Key) {
	b.Helper()
	d := keyedDevice(b.T, id, key)
	if d.Serial = uint32(len(b.registered)); b.registered[id] != nil {
		d.Serial = b.registered[id].Serial
	}
	b.registered[id] = d
}

// keyedDevice returns a device with a public key, as a registry has it.
func keyedDevice(t testing.TB, id string, key *publickey.Key) *registry.Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "devices.db")
	store, err := registry.OpenStore(path)
	if err == nil {
		err = store.Register(t.Context(), registry.Registration{ID: id, Key: key})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	d := *r.Lookup([]byte(id))
	return &d
}

// BenchmarkVerdictKey measures the verdict on a good message of a device with a public key.
func BenchmarkVerdictKey(b *testing.B) {
	for _, a := range algorithms {
		b.Run(string(a), func(b *testing.B) {
			own := newSigner(b, a)
			var all devices
			d := all.of(keyedDevice(b, "sensor_001", own.Public()))
			d.limiter = nil
			c := circumstances{now: time.Unix(now, 0), tolerance: 300, maxBytes: 65536, decoder: new(envelope.Decoder), seen: replay.New(1000, 5*time.Minute)}
			p := publish("sensor_001", signWith(b, own, "sensor_001", now, anID, `{"battery":3.71,"humidity":60,"temperature":22.5,"unit":"degC"}`))
			b.ReportAllocs()
			for b.Loop() {
				if _, reason, _ := judge(p, p.Identity, d, &c); reason != Accepted {
					b.Fatal(reason)
				}
			}
		})
	}
}

func signWith(t testing.TB, s envelope.Signer, device string, timestamp int64, id, payload string) []byte {
	t.Helper()
	text, err := envelope.Sign(s, device, timestamp, id, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// anIDOf returns a message id for each n.
func anIDOf(n int) string { return fmt.Sprintf("550e8400-e29b-41d4-a716-%012d", n) }

var algorithms = []publickey.Algorithm{publickey.Ed25519, publickey.P256}

// TestKeyVectors holds the verdict against the vectors of devices with public keys.
func TestKeyVectors(t *testing.T) {
	text, err := os.ReadFile("../envelope/testdata/envelope-v1-keys.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		PublicKey map[string]string `json:"public_key"`
		Vectors   []struct {
			Name, Message, Expect, Topic string
			TLSIdentity                  string `json:"tls_identity"`
			Now                          int64
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 20 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	b := newBench(t)
	for id, text := range file.PublicKey {
		key, err := publickey.ParsePEM([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		b.registerKey(id, key)
	}
	for _, v := range file.Vectors {
		b.c.now = time.Unix(v.Now, 0)
		want := v.Expect
		if want == "accept" {
			want = Accepted.String()
		}
		_, reason, err := b.judge(&Publish{Identity: []byte(v.TLSIdentity), Certified: true, Topic: []byte(v.Topic), Payload: []byte(v.Message)})
		if reason.String() != want {
			t.Errorf("%s: got %s (%v), want %s", v.Name, reason, err, want)
		}
	}
}

// TestAlgorithmIsTheDevices: a signature of one algorithm, key or kind is none of another, whatever the message looks like.
func TestAlgorithmIsTheDevices(t *testing.T) {
	signers := map[string]envelope.Signer{"secret": envelope.NewSigner([]byte("supersecretkey123"))}
	for _, a := range algorithms {
		b := newBench(t)
		own := newSigner(t, a)
		b.registerKey("sensor_001", own.Public())
		signers["another key of "+string(a)] = newSigner(t, a)
		// What a mistake with algorithms would make of a public key: the secret of an HMAC.
		signers["the public key as a secret"] = envelope.NewSigner([]byte(own.Public().Text()))
		if _, reason, _ := b.judge(publish("sensor_001", signWith(t, own, "sensor_001", now, anID, "1"))); reason != Accepted {
			t.Errorf("%s: %s", a, reason)
		}
		for name, signer := range signers {
			if _, reason, _ := b.judge(publish("sensor_001", signWith(t, signer, "sensor_001", now, anID, "1"))); reason != BadSignature {
				t.Errorf("%s, signed with %s: %s", a, name, reason)
			}
		}
		if _, reason, _ := b.judge(publish("sensor_002", signWith(t, own, "sensor_002", now, anID, "1"))); reason != BadSignature {
			t.Errorf("%s for a device with a secret: %s", a, reason)
		}
	}
}

// TestSignedAgain: a message that is sent again with a new signature, as ECDSA makes one, is the same message; with a bad one,
// another payload or topic, it is a replay.
func TestSignedAgain(t *testing.T) {
	for _, a := range algorithms {
		b := newBench(t)
		own := newSigner(t, a)
		b.registerKey("sensor_001", own.Public())
		d := b.devices.of(b.registered["sensor_001"])
		first := publish("sensor_001", signWith(t, own, "sensor_001", now, anID, `{"b":1,"a":2}`))
		first.QoS = 1
		e, reason, _ := b.judge(first)
		if reason != Accepted {
			t.Fatal(reason)
		}
		b.seen.Insert(d.registered.Serial, e.MessageID, now, d.remember(first, e))
		d.published(first.ClientID)
		d.disconnected(first.ClientID)
		signature := string(e.Signature)
		expect := func(what string, want Reason, text []byte, change func(*Publish)) {
			t.Helper()
			p := publish("sensor_001", text)
			p.QoS = 1
			if change != nil {
				change(p)
			}
			e, got, _ := b.judge(p)
			if got != want {
				t.Errorf("%s, %s: %s, want %s", a, what, got, want)
			}
			if what == "signed again" && (string(e.Signature) == signature) != (a == publickey.Ed25519) {
				t.Errorf("%s: the new signature is, or is not, the old one", a)
			}
		}
		expect("the same bytes", Redelivered, first.Payload, nil)
		expect("signed again", Redelivered, signWith(t, own, "sensor_001", now, anID, `{"b":1,"a":2}`), nil)
		expect("another payload", Replay, signWith(t, own, "sensor_001", now, anID, `{"b":1,"a":3}`), nil)
		expect("another timestamp", Replay, signWith(t, own, "sensor_001", now+1, anID, `{"b":1,"a":2}`), nil)
		expect("another QoS", Replay, first.Payload, func(p *Publish) { p.QoS = 2 })
		expect("another client", Replay, first.Payload, func(p *Publish) { p.ClientID = []byte("d") })
		failures := d.failures.count
		expect("another key", Replay, signWith(t, newSigner(t, a), "sensor_001", now, anID, `{"b":1,"a":2}`), nil)
		if d.failures.count != failures+1 {
			t.Errorf("%s: a bad signature under a known id is not counted", a)
		}
	}
}

// TestBadSignaturesAreBounded: of one device after max_bad_signatures in a minute one a second is verified; good ones are
// taken as often as they come until then, and another device is not affected.
func TestBadSignaturesAreBounded(t *testing.T) {
	b := newBench(t)
	own, other := newSigner(t, publickey.Ed25519), newSigner(t, publickey.Ed25519)
	b.registerKey("sensor_001", own.Public())
	b.registerKey("sensor_002", other.Public())
	b.c.keys.maxBad = 5
	b.c.now = time.Unix(now-now%60, 0)
	n := 0
	expect := func(want Reason, id string, s envelope.Signer) {
		t.Helper()
		n++
		if _, got, _ := b.judge(publish(id, signWith(t, s, id, b.c.now.Unix(), anIDOf(n), "1"))); got != want {
			t.Errorf("message %d: %s, want %s", n, got, want)
		}
	}
	for range 4 {
		expect(BadSignature, "sensor_001", other)
	}
	for range 10 {
		expect(Accepted, "sensor_001", own)
	}
	expect(BadSignature, "sensor_001", other)
	for range 3 {
		expect(RateLimited, "sensor_001", other)
		expect(RateLimited, "sensor_001", own)
	}
	expect(Accepted, "sensor_002", other)
	b.c.now = b.c.now.Add(time.Second)
	expect(Accepted, "sensor_001", own)
	expect(RateLimited, "sensor_001", own)
	b.c.now = b.c.now.Add(time.Second)
	expect(BadSignature, "sensor_001", other)
	expect(RateLimited, "sensor_001", own)
	b.c.now = b.c.now.Add(time.Minute)
	for range 10 {
		expect(Accepted, "sensor_001", own)
	}
}

// TestFailedVerificationsTakeATenth: of all devices together; and one that has not failed still has room when those that
// have do not.
func TestFailedVerificationsTakeATenth(t *testing.T) {
	b := newBench(t)
	own, other := newSigner(t, publickey.Ed25519), newSigner(t, publickey.Ed25519)
	b.registerKey("sensor_001", own.Public())
	b.registerKey("sensor_002", other.Public())
	b.c.now = time.Unix(now-now%60, 0)
	bad := publish("sensor_001", signWith(t, other, "sensor_001", now-now%60, anID, "1"))
	good := publish("sensor_002", signWith(t, other, "sensor_002", now-now%60, anID, "1"))
	fail := func() time.Duration {
		t.Helper()
		before := b.c.keys.spent
		for range 1_000_000 {
			if _, reason, _ := b.judge(bad); reason == RateLimited {
				return b.c.keys.spent - before
			}
		}
		t.Fatal("there is no end")
		return 0
	}
	if spent := fail(); spent < keyShared || spent > keyBurst {
		t.Errorf("at once %v", spent)
	}
	if _, reason, _ := b.judge(good); reason != Accepted {
		t.Errorf("a device without failures: %s", reason)
	}
	b.c.keys.spent = keyShared // the last one may have taken long, on a busy machine
	b.c.now = b.c.now.Add(time.Second / 2)
	if spent := fail() + time.Second/2/keyShare; spent < time.Second/2/keyShare || spent > time.Second/keyShare {
		t.Errorf("after half a second %v", spent)
	}
	b.c.keys.spent = keyBurst
	if _, reason, _ := b.judge(good); reason != RateLimited {
		t.Errorf("all of it is spent: %s", reason)
	}
}

// TestRetainedHaveABudgetOfTheirOwn: a subscriber that asks again and again for retained messages with bad signatures takes a
// bounded time, and nothing from the devices that publish.
func TestRetainedHaveABudgetOfTheirOwn(t *testing.T) {
	g := startGate(t, nil)
	own := newSigner(t, publickey.Ed25519)
	store, err := registry.OpenStore(filepath.Join(g.dir, "devices.db"))
	if err == nil {
		err = store.Register(t.Context(), registry.Registration{ID: "sensor_003", Key: own.Public()})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	g.restart(nil)
	kept := publish("sensor_003", signWith(t, newSigner(t, publickey.Ed25519), "sensor_003", now, anID, "1"))
	kept.Retain = true
	asked := by(kept, "dashboard", "device/sensor_003/data")
	began := time.Now()
	for range 20_000 {
		if g.Access(Read, asked) != Deny {
			t.Fatal("a message with a bad signature is served")
		}
	}
	if spent, most := g.retained.keys.spent, keyBurst+time.Since(began)/keyShare; spent == 0 || spent > most {
		t.Errorf("they have taken %v, want at most %v", spent, most)
	}
	if f, spent := g.devices.of(g.registry.Lookup([]byte("sensor_003"))).failures.count, g.decision.keys.spent; f != 0 || spent != 0 {
		t.Errorf("%d failures are the device's, and %v is from the budget of those that publish", f, spent)
	}
	p := publish("sensor_003", signWith(t, own, "sensor_003", time.Now().Unix(), anIDOf(1), "1"))
	p.QoS = 1
	if got := g.send(p); got != Route {
		t.Errorf("the device's own message: %v, %s", got, g.host.last())
	}
}

// TestAStandstillIsNotCharged: the process may stand still during a verification; the budget is not gone for minutes then.
func TestAStandstillIsNotCharged(t *testing.T) {
	var b keyBudget
	b.charge(10 * time.Millisecond)
	if b.spent != 10*time.Millisecond {
		t.Errorf("%v", b.spent)
	}
	b.charge(time.Minute)
	if b.spent > 2*keyBurst {
		t.Errorf("%v, which takes %v to fill", b.spent, b.spent*keyShare)
	}
}

// TestKeyAllocations: what a message of a device with a public key allocates is what the library does: nothing with
// Ed25519, eleven with P-256.
func TestKeyAllocations(t *testing.T) {
	for a, most := range map[publickey.Algorithm]float64{publickey.Ed25519: 0, publickey.P256: 11} {
		b := newBench(t)
		own := newSigner(t, a)
		b.registerKey("sensor_001", own.Public())
		p := publish("sensor_001", signWith(t, own, "sensor_001", now, anID, `{"b":1,"a":2}`))
		d := b.devices.of(b.registered["sensor_001"])
		if n := testing.AllocsPerRun(100, func() {
			e, err := b.c.decoder.Decode(p.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if good, _ := b.c.signed(d, e); !good {
				t.Fatal("not good")
			}
			d.remember(p, e)
		}); n > most {
			t.Errorf("%s: %v allocations, want %v", a, n, most)
		}
	}
}
