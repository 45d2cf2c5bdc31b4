package gate

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
)

const (
	now     = 1727712000
	anID    = "550e8400-e29b-41d4-a716-446655440000"
	otherID = "550e8400-e29b-41d4-a716-446655440001"
)

// aBench is what judge needs, with two devices whose secrets are those of the vectors and one that is disabled.
type aBench struct {
	*testing.T
	registered map[string]*registry.Device
	devices    devices
	c          circumstances
	seen       *replay.Set
}

func newBench(t *testing.T) *aBench {
	b := &aBench{T: t, seen: replay.New(1000, 5*time.Minute), devices: devices{limit: rate.Inf}}
	b.registered = map[string]*registry.Device{
		"sensor_001": {ID: "sensor_001", Serial: 0, Secrets: []registry.Secret{registry.Secret("supersecretkey123")}},
		"sensor_002": {ID: "sensor_002", Serial: 1, Secrets: []registry.Secret{registry.Secret("anothersecretkey456")}},
		"sensor_003": {ID: "sensor_003", Serial: 2, Secrets: []registry.Secret{registry.Secret("s")}, Disabled: true},
	}
	b.c = circumstances{now: time.Unix(now, 0), tolerance: 300, maxBytes: 65536, decoder: new(envelope.Decoder), seen: b.seen}
	return b
}

func (b *aBench) judge(p *Publish) (*envelope.Envelope, Reason, error) {
	level, gated := NewTopics(TopicConfig{Gated: []string{"device/+/data"}}).Gated(p.Topic)
	if !gated {
		b.Fatalf("%q is not gated", p.Topic)
	}
	return judge(p, level, b.devices.of(b.registered[string(p.Identity)]), &b.c)
}

func sign(t testing.TB, secret, device string, timestamp int64, id, payload string) []byte {
	t.Helper()
	text, err := envelope.Sign(envelope.NewSigner([]byte(secret)), device, timestamp, id, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// publish returns a publish on the gated topic of identity, whose certificate was presented.
func publish(identity string, text []byte) *Publish {
	return &Publish{Identity: []byte(identity), Certified: true, ClientID: []byte("c"), Topic: []byte("device/" + identity + "/data"), Payload: text}
}

// TestVectors compares the verdict with every vector, reason for reason.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile("../envelope/testdata/envelope-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name, Message, Expect, Topic string
			TLSIdentity                  string `json:"tls_identity"`
			Now                          int64
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	expected := map[string]int{}
	for _, v := range file.Vectors {
		expected[v.Expect]++
		t.Run(v.Name, func(t *testing.T) {
			b := newBench(t)
			b.c.now = time.Unix(v.Now, 0)
			want := v.Expect
			if want == "accept" {
				want = Accepted.String()
			}
			_, reason, err := b.judge(&Publish{
				Identity:  []byte(v.TLSIdentity),
				Certified: v.TLSIdentity != "",
				Topic:     []byte(v.Topic),
				Payload:   []byte(v.Message),
			})
			if reason.String() != want {
				t.Errorf("got %s (%v), want %s", reason, err, want)
			}
		})
	}
	for _, want := range []string{"accept", "malformed", "stale", "future", "bad_signature", "identity_mismatch", "topic_mismatch", "no_tls_identity", "unknown_device"} {
		if expected[want] == 0 {
			t.Errorf("no vector expects %s", want)
		}
	}
}

// TestFirstFailingCheckNamesTheReason takes a message with everything wrong and corrects one thing after the other: the
// reasons must come in the order of the checks.
func TestFirstFailingCheckNamesTheReason(t *testing.T) {
	b := newBench(t)
	b.c.maxBytes = 400
	b.devices = devices{limit: 1, burst: 1}
	d := b.devices.of(b.registered["sensor_001"])
	d.limiter.AllowN(b.c.now, 1) // the bucket is empty

	p := &Publish{Identity: []byte("sensor_001"), Topic: []byte("device/sensor_002/data"), Payload: []byte(strings.Repeat("x", 401))}
	expect := func(want Reason) {
		t.Helper()
		if _, got, _ := b.judge(p); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	expect(NoTLSIdentity)
	p.Certified = true
	expect(TopicMismatch)
	p.Topic = []byte("device/sensor_001/data")
	expect(RateLimited)
	d.limiter.SetLimit(rate.Inf)
	expect(TooLarge)
	p.Payload = p.Payload[:400]
	expect(Malformed)
	p.Payload = sign(t, "wrong", "sensor_002", now-301, anID, "1")
	expect(IdentityMismatch)
	delete(b.registered, "sensor_001")
	p.Payload = sign(t, "wrong", "sensor_001", now-301, anID, "1")
	expect(UnknownDevice)
	p = publish("sensor_003", sign(t, "wrong", "sensor_003", now-301, anID, "1"))
	b.devices.of(b.registered["sensor_003"]).limiter.SetLimit(rate.Inf)
	expect(Disabled)
	b.registered["sensor_003"] = &registry.Device{ID: "sensor_003", Serial: 2, Secrets: []registry.Secret{registry.Secret("s")}}
	expect(Stale)
	p.Payload = sign(t, "wrong", "sensor_003", now+301, anID, "1")
	expect(Future)
	b.seen.Insert(2, [16]byte{0x55, 0x0e, 0x84, 0, 0xe2, 0x9b, 0x41, 0xd4, 0xa7, 0x16, 0x44, 0x66, 0x55, 0x44, 0, 0}, now, replay.Entry{})
	p.Payload = sign(t, "wrong", "sensor_003", now, anID, "1")
	expect(Replay)
	p.Payload = sign(t, "wrong", "sensor_003", now, otherID, "1")
	expect(BadSignature)
	p.Payload = sign(t, "s", "sensor_003", now, otherID, "1")
	expect(Accepted)
}

func TestAnySecretOfADeviceIsGood(t *testing.T) {
	b := newBench(t)
	old := b.registered["sensor_001"]
	rotated := *old
	rotated.Secrets = []registry.Secret{registry.Secret("newer"), old.Secrets[0]}
	b.registered["sensor_001"] = &rotated
	for _, secret := range []string{"newer", "supersecretkey123"} {
		if _, reason, _ := b.judge(publish("sensor_001", sign(t, secret, "sensor_001", now, anID, "1"))); reason != Accepted {
			t.Errorf("secret %q: %s", secret, reason)
		}
	}
	rotated2 := rotated
	rotated2.Secrets = rotated.Secrets[:1]
	b.registered["sensor_001"] = &rotated2
	if _, reason, _ := b.judge(publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", now, anID, "1"))); reason != BadSignature {
		t.Errorf("a secret that was taken away: %s", reason)
	}
}

// TestRateLimit: each device has its own bucket, which stays when its secret changes and refills with time.
func TestRateLimit(t *testing.T) {
	b := newBench(t)
	b.devices = devices{limit: 2, burst: 3}
	message := func(device string) *Publish { return publish(device, []byte("{}")) }
	count := func(device string) (limited int) {
		for range 10 {
			if _, reason, _ := b.judge(message(device)); reason == RateLimited {
				limited++
			}
		}
		return limited
	}
	if n := count("sensor_001"); n != 7 {
		t.Errorf("burst 3: %d of 10 limited", n)
	}
	if n := count("sensor_002"); n != 7 {
		t.Errorf("another device: %d of 10 limited", n)
	}
	changed := *b.registered["sensor_001"]
	b.registered["sensor_001"] = &changed
	if n := count("sensor_001"); n != 10 {
		t.Errorf("after a change in the registry: %d of 10 limited", n)
	}
	b.c.now = b.c.now.Add(time.Second)
	if n := count("sensor_001"); n != 8 {
		t.Errorf("a second later: %d of 10 limited", n)
	}
}

func TestTimestampExtremes(t *testing.T) {
	b := newBench(t)
	for timestamp, want := range map[int64]Reason{
		-9223372036854775808: Stale, -1: Stale, 0: Stale, now - 301: Stale, now - 300: Accepted,
		now + 300: Accepted, now + 301: Future, 9223372036854775807: Future,
	} {
		if _, reason, _ := b.judge(publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", timestamp, anID, "1"))); reason != want {
			t.Errorf("timestamp %d: %s, want %s", timestamp, reason, want)
		}
	}
	// A fraction of a second changes nothing: the envelope counts whole seconds.
	b.c.now = time.Unix(now, 999999999)
	if _, reason, _ := b.judge(publish("sensor_001", sign(t, "supersecretkey123", "sensor_001", now-300, anID, "1"))); reason != Accepted {
		t.Errorf("within the last second: %s", reason)
	}
}

func TestMalformedSaysWhy(t *testing.T) {
	b := newBench(t)
	_, reason, err := b.judge(publish("sensor_001", []byte(`{"device":"sensor_001"}`)))
	if reason != Malformed || !errors.Is(err, envelope.ErrMember) {
		t.Errorf("%s, %v", reason, err)
	}
}
