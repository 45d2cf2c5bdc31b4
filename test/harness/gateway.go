// Package harness is the rig of the integration tests: the real broker with the real plugin, over real TLS, a backend that
// records what it gets, and devices that send, answer, subscribe and take over sessions. Its subpackages know nothing of
// tests and are used by bouncer-sim, too: broker runs Mosquitto, backend is the HTTP server, device is the client.
//
// The library is the one with the faults that tests inject, if it is there: a message with the payload "inject_fault" panics in
// the plugin, one with "inject_thread_fault" calls the broker from another thread.
package harness

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// Patience bounds every single wait. It is generous because the machine may be busy; nothing waits that long except a
// test that fails.
const Patience = 20 * time.Second

// A Gateway is a broker with the plugin and the backend behind it. What Accept and Refuse did is kept, so that
// NothingElse can tell what should not have come through. Its methods are for one goroutine, unless they say otherwise.
type Gateway struct {
	*testing.T
	Broker  *broker.Broker
	Backend *backend.Backend
	Monitor *device.V5 // reads everything, once Watch has been called
	// tickless: the broker never ticks, so after one at QoS 2 the gateway publishes all messages on that topic itself, and
	// the broker knows of no subscriber when it acknowledges them.
	tickless bool

	mu       sync.Mutex // guards what follows
	accepted []Delivery
	refused  []Delivery
}

// New starts a backend, and a broker that posts to it. Both end with the test.
func New(t *testing.T, options broker.Options) *Gateway {
	t.Helper()
	g := &Gateway{T: t, Backend: backend.Start(t)}
	if options.BackendURL == "" {
		options.BackendURL = g.Backend.URL()
	}
	g.Broker = broker.Start(t, options)
	g.tickless = options.PerListenerSettings && !g.Broker.Version().AtLeast(2, 0, 15)
	return g
}

// Eventually waits until a condition is met.
func (g *Gateway) Eventually(what string, met func() bool) {
	g.Helper()
	for deadline := time.Now().Add(Patience); !met(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

// Sub is the same gateway for a subtest.
func (g *Gateway) Sub(name string, run func(g *Gateway)) {
	outer := g.T
	defer func() { g.T = outer }()
	outer.Run(name, func(t *testing.T) {
		g.T = t
		run(g)
	})
}

// Limit returns a context for one wait. Safe for concurrent use.
func (g *Gateway) Limit() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	g.Cleanup(cancel)
	return ctx
}

// Must fails the test on an error.
func (g *Gateway) Must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// Device is the identity with this common name, registered or not.
func (g *Gateway) Device(id string) *device.Device {
	g.Helper()
	d, err := g.Broker.Device(id)
	g.Must(err)
	return d
}

// A Protocol is a version of MQTT.
type Protocol int

const (
	MQTT311 Protocol = iota
	MQTT5
)

func (p Protocol) String() string { return [...]string{"MQTT 3.1.1", "MQTT 5"}[p] }

// Refusal is the reason code of a refused publish: MQTT 3.1.1 has none, nor has QoS 0 an acknowledgement.
func (p Protocol) Refusal(qos byte) byte {
	if p == MQTT5 && qos > 0 {
		return device.NotAuthorized
	}
	return device.Success
}

// BothProtocols are the versions of MQTT that devices speak.
var BothProtocols = []Protocol{MQTT5, MQTT311}

// EachWay runs a subtest for either version of MQTT and every QoS.
func (g *Gateway) EachWay(run func(g *Gateway, p Protocol, qos byte)) {
	for _, p := range BothProtocols {
		for qos := byte(0); qos <= 2; qos++ {
			g.Sub(fmt.Sprintf("%v QoS %d", p, qos), func(g *Gateway) { run(g, p, qos) })
		}
	}
}
