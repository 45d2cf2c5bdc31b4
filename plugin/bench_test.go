package plugin

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/replay"
	"mosquitto-bouncer/plugin/sampler"
)

// What the benchmarks below publish: as many messages, of as many devices, as a processor's caches do not foresee.
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

// silentBroker is a Host that does nothing.
type silentBroker struct{}

func (silentBroker) Log(slog.Level, string)                      {}
func (silentBroker) Publish(downlink.Publish) error              { return nil }
func (silentBroker) Kick(string)                                 {}
func (silentBroker) KickUser(string)                             {}
func (silentBroker) SetIssuers([][]byte) bool                    { return true }
func (silentBroker) Fingerprint(uintptr) (sum [32]byte, ok bool) { return }
func (silentBroker) Wake()                                       {}
func (silentBroker) SetOthers(Others)                            {}
func (silentBroker) SetStrangers(Strangers)                      {}
func (silentBroker) Is2_1() bool                                 { return false }
func (silentBroker) Traceparent(unsafe.Pointer) string           { return "" }
func (silentBroker) Properties(unsafe.Pointer) []byte            { return nil }

// A benchGateway is a running gateway whose backend takes connections and never answers, so that nothing but the
// benchmark runs; and good publishes of its devices, in no order that a processor foresees.
type benchGateway struct {
	*Gateway
	backend   string // URL
	publishes []*gate.Publish
}

// startBench starts one; the messages were made so long ago.
func startBench(b *testing.B, ago time.Duration) *benchGateway {
	b.Helper()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { backend.Close() })
	dir := b.TempDir()
	store, err := registry.OpenStore(filepath.Join(dir, "devices.db"))
	if err != nil {
		b.Fatal(err)
	}
	id := func(n int) string { return fmt.Sprintf("sensor_%03d", n) }
	secret := func(n int) string { return fmt.Sprintf("%064x", n) }
	for n := range benchDevices {
		if err := store.Add(context.Background(), id(n), registry.Secret(secret(n))); err != nil {
			b.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(dir, "bouncer.toml")
	text := fmt.Sprintf("state_dir = \".\"\ndatabase = \"devices.db\"\n[publish]\ntolerance = \"1h\"\n"+
		"[backend]\nurl = \"http://%s/{device_id}\"\nconcurrency = 1\n[journal]\nmax_bytes = \"64GiB\"\n", backend.Addr())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	g := &benchGateway{backend: "http://" + backend.Addr().String()}
	if g.Gateway, err = Start(file, silentBroker{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(g.Stop)
	timestamp := time.Now().Add(-ago).Unix()
	for i := range benchMessages {
		n := i * 7919 % benchDevices
		g.publishes = append(g.publishes, &gate.Publish{
			Identity: []byte(id(n)), Certified: true, ClientID: []byte("client of " + id(n)),
			Topic: []byte("device/" + id(n) + "/data"), QoS: 1, Connection: uintptr(n + 1),
			Payload: benchEnvelope(b, secret(n), id(n), timestamp, uuid.NewString()),
		})
	}
	g.Tick()
	return g
}

// remember has every publish accepted before.
func (g *benchGateway) remember(b *testing.B) {
	b.Helper()
	for _, p := range g.publishes {
		e, err := new(envelope.Decoder).Decode(p.Payload)
		if err != nil {
			b.Fatal(err)
		}
		d := g.devices.of(g.registry.Lookup(p.Identity))
		if g.seen.Insert(d.registered.Serial, e.MessageID, e.Timestamp, d.remember(p, e)) != replay.Inserted {
			b.Fatal("not inserted")
		}
	}
}

// saturate uses up what the log takes of refusals, so that as good as none is written any more.
func (g *benchGateway) saturate() {
	for range 2 {
		for _, p := range g.publishes {
			g.Access(gate.Write, p)
			g.pending.set = false
		}
	}
	for i := range sampler.Burst {
		p := *g.publishes[0]
		p.Identity = fmt.Appendf(nil, "other_%d", i)
		g.refuse(&p, nil, nil, gate.Malformed, nil)
	}
}

// BenchmarkVerdict measures the whole of a decision on a publish to a gated topic, by reason: topic, registry, replay
// memory, parsing and signature. A refusal's line in the log is not part of it, because of most refusals there is none.
func BenchmarkVerdict(b *testing.B) {
	edit := func(change func(p *gate.Publish)) func(*testing.B, *benchGateway) {
		return func(_ *testing.B, g *benchGateway) {
			for _, p := range g.publishes {
				change(p)
			}
		}
	}
	for _, c := range []struct {
		reason  gate.Reason
		prepare func(b *testing.B, g *benchGateway)
	}{
		{gate.Accepted, edit(func(p *gate.Publish) {})},
		// The dearest there is: everything is read before the mistake is found.
		{gate.Malformed, edit(func(p *gate.Publish) { p.Payload[len(p.Payload)-1] = ']' })},
		{gate.Stale, edit(func(p *gate.Publish) {})},
		{gate.Replay, func(b *testing.B, g *benchGateway) { g.remember(b) }},
		{gate.BadSignature, edit(func(p *gate.Publish) {
			digit := &p.Payload[len(p.Payload)-len(`0"}`)]
			*digit = "10"[min(*digit-'0', 1)]
		})},
		{gate.IdentityMismatch, edit(func(p *gate.Publish) { p.Payload[len(`{"device_id": "`)] = 'x' })},
		{gate.TopicMismatch, edit(func(p *gate.Publish) { p.Topic[len("device/")] = 'x' })},
		{gate.NoTLSIdentity, edit(func(p *gate.Publish) { p.Certified = false })},
	} {
		b.Run(c.reason.String(), func(b *testing.B) {
			ago := time.Duration(0)
			if c.reason == gate.Stale {
				ago = 2 * time.Hour
			}
			g := startBench(b, ago)
			c.prepare(b, g)
			g.saturate()
			want := gate.Deny
			if c.reason == gate.Accepted {
				want = gate.Allow
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p := g.publishes[i%benchMessages]
				if g.Access(gate.Write, p) != want || g.pending.reason != c.reason {
					b.Fatalf("%s, want %s", g.pending.reason, c.reason)
				}
				g.pending.set = false // or it would be taken for a last will, and its id used up
			}
		})
	}
}

// BenchmarkPublish measures a publish from end to end on the broker's thread: the verdict, the remembering of the id, and
// the hand-over to the forwarder, with the copies that outlive the call.
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
		if g.Access(gate.Write, p) != gate.Allow || g.Message(p) != gate.Route {
			b.Fatal("not accepted")
		}
	}
}

// renew forgets every message, so that the same ones may come again.
func (g *benchGateway) renew(b *testing.B) {
	b.Helper()
	runtime.GC()
	for _, p := range g.publishes {
		e, err := new(envelope.Decoder).Decode(p.Payload)
		if err != nil {
			b.Fatal(err)
		}
		if !g.seen.Remove(g.registry.Lookup(p.Identity).Serial, e.MessageID) {
			b.Fatal("not remembered")
		}
	}
}

// BenchmarkDelivery measures the decision on one delivery of a message to one of 100 subscribers who are no devices, as
// far as it is made in Go: most are made before (cgo/readers.c).
func BenchmarkDelivery(b *testing.B) {
	g := startBench(b, 0)
	accepted := g.publishes[0]
	if g.Access(gate.Write, accepted) != gate.Allow || g.Message(accepted) != gate.Route {
		b.Fatal("not accepted")
	}
	for name, topic := range map[string][]byte{"gated": accepted.Topic, "other": []byte("plant/7/state")} {
		b.Run(name, func(b *testing.B) {
			var readers []*gate.Publish
			for n := range 100 {
				reader := &gate.Publish{Identity: fmt.Appendf(nil, "dashboard-%d", n), Topic: topic, Payload: accepted.Payload, QoS: 1}
				reader.ClientID = bytes.Clone(reader.Identity)
				readers = append(readers, reader)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if g.Access(gate.Read, readers[i%len(readers)]) != gate.NotConcerned {
					b.Fatal("not delivered")
				}
			}
		})
	}
}
