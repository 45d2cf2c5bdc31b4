package gate

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/sampler"
)

// What the benchmarks below publish: so many messages, of so many devices, that the processor's caches do not help.
const (
	benchDevices  = 100
	benchMessages = 8192
)

// envelopeSize is the size of the message of docs/envelope.md, "Worked example", in bytes.
const envelopeSize = 270

// benchEnvelope makes the message of docs/envelope.md with this id and time: the same members in the same order, with
// the same white space, signed over the canonical payload.
func benchEnvelope(b *testing.B, secret, device string, timestamp int64, id string) []byte {
	b.Helper()
	signed, err := envelope.Sign(envelope.NewSigner([]byte(secret)), device, timestamp, id, []byte(`{"battery":3.71,"humidity":60,"temperature":22.5,"unit":"degC"}`))
	if err != nil {
		b.Fatal(err)
	}
	e, err := new(envelope.Decoder).Decode(signed)
	if err != nil {
		b.Fatal(err)
	}
	message := fmt.Appendf(nil, `{"device_id": "%s", "timestamp": %d, "message_id": "%s", "payload": {"temperature": 22.5, "humidity": 60, "battery": 3.71, "unit": "degC"}, "signature": "%x"}`,
		device, timestamp, id, e.Signature)
	if len(message) != envelopeSize {
		b.Fatalf("a message of %d bytes, want %d", len(message), envelopeSize)
	}
	return message
}

// A benchGate is a gate whose backend takes connections and never answers, so that only the benchmark runs. It has good
// publishes of its devices, in an order that a processor cannot predict.
type benchGate struct {
	*aGate
	publishes []*Publish
}

// startBench starts one, whose messages have this age.
func startBench(b *testing.B, ago time.Duration) *benchGate {
	b.Helper()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { backend.Close() })
	id := func(n int) string { return fmt.Sprintf("sensor_%03d", n) }
	secret := func(n int) string { return fmt.Sprintf("%064x", n) }
	devices := make(map[string]string)
	for n := range benchDevices {
		devices[id(n)] = secret(n)
	}
	g := &benchGate{aGate: openGate(b, "http://"+backend.Addr().String(), devices, nil)}
	g.host.silent = true
	timestamp := time.Now().Add(-ago).Unix()
	for i := range benchMessages {
		n := i * 7919 % benchDevices
		g.publishes = append(g.publishes, &Publish{
			Identity: []byte(id(n)), Certified: true, ClientID: []byte("client of " + id(n)),
			Topic: []byte("device/" + id(n) + "/data"), QoS: 1, Connection: uintptr(n + 1),
			Payload: benchEnvelope(b, secret(n), id(n), timestamp, uuid.NewString()),
		})
	}
	g.tick()
	return g
}

// remember makes every publish one that was accepted before.
func (g *benchGate) remember(b *testing.B) {
	b.Helper()
	for _, p := range g.publishes {
		e, err := new(envelope.Decoder).Decode(p.Payload)
		if err != nil {
			b.Fatal(err)
		}
		d := g.devices.of(g.registry.Lookup(p.Identity))
		if g.decision.seen.Insert(d.registered.Serial, e.MessageID, e.Timestamp, d.remember(p, e)) != replay.Inserted {
			b.Fatal("not inserted")
		}
	}
}

// saturate uses up the log's limit for refusals, so that hardly any more are written.
func (g *benchGate) saturate() {
	for range 2 {
		for _, p := range g.publishes {
			g.Access(Write, p)
			g.pending.set = false
		}
	}
	for i := range sampler.Burst {
		p := *g.publishes[0]
		p.Identity = fmt.Appendf(nil, "other_%d", i)
		g.refuse(&p, nil, nil, Malformed, nil)
	}
}

// BenchmarkVerdict measures the whole of a decision on a publish to a gated topic, by reason: topic, registry, replay
// memory, parsing and signature. A refusal's line in the log is not part of it, because most refusals have none.
func BenchmarkVerdict(b *testing.B) {
	edit := func(change func(p *Publish)) func(*testing.B, *benchGate) {
		return func(_ *testing.B, g *benchGate) {
			for _, p := range g.publishes {
				change(p)
			}
		}
	}
	for _, c := range []struct {
		reason  Reason
		prepare func(b *testing.B, g *benchGate)
	}{
		{Accepted, edit(func(p *Publish) {})},
		// The most expensive there is: everything is read before the mistake is found.
		{Malformed, edit(func(p *Publish) { p.Payload[len(p.Payload)-1] = ']' })},
		{Stale, edit(func(p *Publish) {})},
		{Replay, func(b *testing.B, g *benchGate) { g.remember(b) }},
		{BadSignature, edit(func(p *Publish) {
			digit := &p.Payload[len(p.Payload)-len(`0"}`)]
			*digit = "10"[min(*digit-'0', 1)]
		})},
		{IdentityMismatch, edit(func(p *Publish) { p.Payload[len(`{"device_id": "`)] = 'x' })},
		{TopicMismatch, edit(func(p *Publish) { p.Topic[len("device/")] = 'x' })},
		{NoTLSIdentity, edit(func(p *Publish) { p.Certified = false })},
	} {
		b.Run(c.reason.String(), func(b *testing.B) {
			ago := time.Duration(0)
			if c.reason == Stale {
				ago = 2 * time.Hour
			}
			g := startBench(b, ago)
			c.prepare(b, g)
			g.saturate()
			want := Deny
			if c.reason == Accepted {
				want = Allow
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p := g.publishes[i%benchMessages]
				if g.Access(Write, p) != want || g.pending.reason != c.reason {
					b.Fatalf("%s, want %s", g.pending.reason, c.reason)
				}
				g.pending.set = false // otherwise it would count as a last will, and its id as used
			}
		})
	}
}

// BenchmarkPublish measures a publish from end to end on the broker's thread: the verdict, the storing of the id, and the
// handover to the outbox, with the copies that outlive the call.
func BenchmarkPublish(b *testing.B) {
	g := startBench(b, 0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%benchMessages == 0 && i > 0 {
			b.StopTimer()
			g.renew(b)
			b.StartTimer()
		}
		p := g.publishes[i%benchMessages]
		if g.Access(Write, p) != Allow || g.Message(p) != Route {
			b.Fatal("not accepted")
		}
	}
}

// renew forgets every message, so that the same ones may come again.
func (g *benchGate) renew(b *testing.B) {
	b.Helper()
	runtime.GC()
	for _, p := range g.publishes {
		e, err := new(envelope.Decoder).Decode(p.Payload)
		if err != nil {
			b.Fatal(err)
		}
		if !g.decision.seen.Remove(g.registry.Lookup(p.Identity).Serial, e.MessageID) {
			b.Fatal("not remembered")
		}
	}
}

// BenchmarkDelivery measures the decision on one delivery of a message to one of 100 subscribers that are not devices, in Go.
// Most such decisions are made before, in C (cgo/bystander.c).
func BenchmarkDelivery(b *testing.B) {
	g := startBench(b, 0)
	accepted := g.publishes[0]
	if g.Access(Write, accepted) != Allow || g.Message(accepted) != Route {
		b.Fatal("not accepted")
	}
	for name, topic := range map[string][]byte{"gated": accepted.Topic, "other": []byte("plant/7/state")} {
		b.Run(name, func(b *testing.B) {
			var readers []*Publish
			for n := range 100 {
				reader := &Publish{Identity: fmt.Appendf(nil, "dashboard-%d", n), Topic: topic, Payload: accepted.Payload, QoS: 1}
				reader.ClientID = bytes.Clone(reader.Identity)
				readers = append(readers, reader)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if g.Access(Read, readers[i%len(readers)]) != NotConcerned {
					b.Fatal("not delivered")
				}
			}
		})
	}
}

// BenchmarkRetained measures what one retained message costs the broker's thread when a client subscribes.
func BenchmarkRetained(b *testing.B) {
	for _, how := range []string{"verified", "signature"} {
		b.Run(how, func(b *testing.B) {
			g := startBench(b, 0)
			asked := g.publishes[:benchDevices] // one of each device
			for i := 0; b.Loop(); i++ {
				p := asked[i%benchDevices]
				if how == "signature" {
					g.retained.verified.Forget(p.Topic)
				}
				if g.Retained(p) != Allow {
					b.Fatal("denied")
				}
			}
		})
	}
}
