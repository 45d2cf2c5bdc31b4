package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/registry"
)

const anID = "550e8400-e29b-41d4-a716-446655440000"

func sign(t testing.TB, secret, device string, timestamp int64, id, payload string) []byte {
	t.Helper()
	text, err := envelope.Sign(envelope.NewSigner([]byte(secret)), device, timestamp, id, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// publish returns a publish on the gated topic of identity, whose certificate was presented.
func publish(identity string, text []byte) *gate.Publish {
	return &gate.Publish{Identity: []byte(identity), Certified: true, ClientID: []byte("c"), Topic: []byte("device/" + identity + "/data"), Payload: text}
}

// aBroker is a Host that records what it is called with.
type aBroker struct {
	lines     []string
	published []mqtt.Message
	kicked    []string

	fingerprint [32]byte
	issuers     [][]byte
	others      Others
	strangers   gate.Strangers
	wakes       atomic.Int64
	faulty      bool // Traceparent panics
}

func (b *aBroker) Log(_ slog.Level, line string) { b.lines = append(b.lines, line) }
func (b *aBroker) Publish(p mqtt.Message) error  { b.published = append(b.published, p); return nil }
func (b *aBroker) Kick(clientID string)          { b.kicked = append(b.kicked, clientID) }
func (b *aBroker) KickUser(username string)      { b.kicked = append(b.kicked, "user "+username) }
func (b *aBroker) Fingerprint(uintptr) ([32]byte, bool) {
	return b.fingerprint, b.fingerprint != [32]byte{}
}
func (b *aBroker) Wake()                         { b.wakes.Add(1) }
func (b *aBroker) SetIssuers(all [][]byte) bool  { b.issuers = all; return true }
func (b *aBroker) SetOthers(o Others)            { b.others = o }
func (b *aBroker) SetStrangers(s gate.Strangers) { b.strangers = s }
func (b *aBroker) Is2_1() bool                   { return false }
func (b *aBroker) Traceparent(unsafe.Pointer) string {
	if b.faulty {
		panic("no memory")
	}
	return ""
}
func (b *aBroker) Properties(unsafe.Pointer) []byte { return []byte("properties") }
func (b *aBroker) last() string                     { return b.lines[len(b.lines)-1] }
func (b *aBroker) count(part string) (n int)        { return strings.Count(strings.Join(b.lines, "\n"), part) }

// aGateway is a running gateway with two devices, sensor_001 and sensor_002, whose secret is "s", and a real backend.
type aGateway struct {
	*Gateway
	t       testing.TB
	host    *aBroker
	backend atomic.Int64 // requests
	dir     string       // of everything
	file    string       // bouncer.toml
}

// disable disables a device in the registry, which takes effect within a second.
func (g *aGateway) disable(device string) error {
	store, err := registry.OpenStore(filepath.Join(g.dir, "devices.db"))
	if err != nil {
		return err
	}
	return errors.Join(store.SetDisabled(context.Background(), device, true), store.Close())
}

// restart stops the gateway and starts another one in its place.
func (g *aGateway) restart() {
	g.t.Helper()
	g.Stop()
	var err error
	if g.Gateway, err = Start(g.file, g.host); err != nil {
		g.t.Fatal(err)
	}
}

func startGateway(t testing.TB, settings string) *aGateway {
	t.Helper()
	g := &aGateway{t: t, host: new(aBroker)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.backend.Add(1)
		fmt.Fprintf(w, "got %s", r.URL.Path)
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	g.dir = dir
	store, err := registry.OpenStore(filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"sensor_001", "sensor_002"} {
		if err := store.Add(context.Background(), id, registry.Secret("s")); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bouncer.toml")
	text := fmt.Sprintf("state_dir = \".\"\ndatabase = \"devices.db\"\n[backend]\nurl = \"%s/{device_id}\"\n%s", server.URL, settings)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if g.Gateway, err = Start(file, g.host); err != nil {
		t.Fatal(err)
	}
	g.file = file
	t.Cleanup(func() { g.Stop() }) // whichever it is then
	return g
}

// fresh returns a good publish of device over connection 1.
func (g *aGateway) fresh(device string) *gate.Publish {
	p := publish(device, sign(g.t, "s", device, time.Now().Unix(), uuid.NewString(), `{"t":22}`))
	p.QoS, p.Connection = 1, 1
	return p
}

// send does what the broker does with a publish: the access check, and the message if that allows it.
func (g *aGateway) send(p *gate.Publish) gate.Disposition {
	if g.Access(gate.Write, p) != gate.Allow {
		return gate.Refuse
	}
	return g.Message(p)
}

// by returns p as another client reads, writes or subscribes it.
func by(p *gate.Publish, identity, topic string) *gate.Publish {
	q := *p
	q.Identity, q.ClientID, q.Connection = []byte(identity), []byte(identity), 2
	if topic != "" {
		q.Topic = []byte(topic)
	}
	return &q
}
