package plugin

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/subscription"
)

func TestAnAcceptedPublishComesBackAsAResponse(t *testing.T) {
	g := startGateway(t, "")
	if o := g.send(g.fresh("sensor_001")); o != gate.Route {
		t.Fatalf("disposition %d: %s", o, g.host.last())
	}
	for deadline := time.Now().Add(10 * time.Second); len(g.host.published) == 0 && time.Now().Before(deadline); {
		g.Tick()
	}
	if len(g.host.published) != 1 {
		t.Fatal("no response came back")
	}
	if p := g.host.published[0]; p.Topic != "device/sensor_001/response" || string(p.Payload) != "got /sensor_001" || p.QoS != 1 {
		t.Errorf("the response is %q on %s at QoS %d", p.Payload, p.Topic, p.QoS)
	}
	if g.host.wakes.Load() == 0 {
		t.Error("the broker's thread was not woken")
	}
}

func TestAccessToTopics(t *testing.T) {
	g := startGateway(t, "[rejected]\ntopic = \"\"\n")
	for _, c := range []struct {
		action          gate.Action
		identity, topic string
		want            gate.Decision
	}{
		{gate.Subscribe, "sensor_001", "device/sensor_001/response", gate.AllowCertified},
		{gate.Subscribe, "sensor_001", "device/sensor_001/command", gate.AllowCertified},
		{gate.Subscribe, "sensor_001", "device/sensor_001/rejected", gate.Deny}, // not set
		{gate.Subscribe, "sensor_001", "device/sensor_001/data", gate.Deny},
		{gate.Subscribe, "sensor_001", "device/sensor_001/#", gate.Deny},
		{gate.Subscribe, "sensor_001", "device/sensor_001/+", gate.Deny},
		{gate.Subscribe, "sensor_001", "device/+/response", gate.Deny},
		{gate.Subscribe, "sensor_001", "device/sensor_002/response", gate.Deny},
		{gate.Subscribe, "sensor_001", "$share/g/device/sensor_001/response", gate.Deny},
		{gate.Subscribe, "sensor_001", "#", gate.Deny},
		{gate.Subscribe, "sensor_001", "", gate.Deny},
		{gate.Subscribe, "dashboard", "#", gate.NotConcerned},
		{gate.Subscribe, "", "device/+/response", gate.NotConcerned},
		{gate.Read, "sensor_001", "device/sensor_001/response", gate.AllowCertified},
		{gate.Read, "sensor_001", "device/sensor_002/response", gate.Deny},
		{gate.Read, "sensor_001", "news", gate.Deny},
		{gate.Read, "dashboard", "device/sensor_001/response", gate.NotConcerned},
		{gate.Read, "dashboard", "device/sensor_001/data", gate.NotConcerned},
		{gate.Read, "", "news", gate.NotConcerned},
		{gate.Write, "sensor_001", "news", gate.Deny},
		{gate.Write, "sensor_001", "device/sensor_001/response", gate.Deny},
		{gate.Write, "sensor_001", "device/sensor_001/command", gate.Deny},
		{gate.Write, "dashboard", "device/sensor_001/response", gate.Deny},
		{gate.Write, "", "device/x/command", gate.Deny},
		{gate.Write, "dashboard", "device/sensor_001/data", gate.Deny},
		{gate.Write, "dashboard", "news", gate.NotConcerned},
		{gate.Write, "", "$CONTROL/dynamic-security/v1", gate.NotConcerned},
		{gate.Unsubscribe, "sensor_001", "device/sensor_001/response/a/b/c/d/e/f", gate.Allow},
		{gate.Unsubscribe, "sensor_001", "device/sensor_002/response", gate.Deny},
		{gate.Unsubscribe, "sensor_001", "#", gate.Deny}, // not under its own client id
		{gate.Unsubscribe, "dashboard", "#", gate.NotConcerned},
		{gate.Action(0), "dashboard", "news", gate.Deny},
		{gate.Action(3), "dashboard", "news", gate.Deny},
	} {
		p := publish(c.identity, []byte("hello"))
		p.Topic = []byte(c.topic)
		if got := g.Access(c.action, p); got != c.want {
			t.Errorf("action %d of %q on %q: %d, want %d", c.action, c.identity, c.topic, got, c.want)
		}
	}
}

// A write that Access has allowed and for which Message was not called is a last will: it reaches no subscriber.
func TestALastWillReachesNoSubscriber(t *testing.T) {
	g := startGateway(t, "")
	will := g.fresh("sensor_001")
	if g.Access(gate.Write, will) != gate.Allow {
		t.Fatal(g.host.last())
	}
	for _, reader := range []string{"dashboard", "", "sensor_002"} {
		if g.Access(gate.Read, by(will, reader, "")) != gate.Deny {
			t.Errorf("%q may read the will", reader)
		}
	}
	if n := g.host.count("reason=forbidden_topic"); n != 1 {
		t.Errorf("%d lines in the log, want 1", n)
	}
	// Its id counts as used, and a copy that the broker retains is removed.
	g.Tick()
	if g.send(will) != gate.Refuse {
		t.Error("what was a will passes as a publish")
	}
	retained := g.fresh("sensor_001")
	retained.Retain = true
	g.Access(gate.Write, retained)
	g.Tick()
	if n := len(g.host.published); n != 1 || !g.host.published[0].Retain || len(g.host.published[0].Payload) != 0 {
		t.Errorf("a retained will is answered with %+v", g.host.published)
	}
	// A publish passes after it.
	other := g.fresh("sensor_002")
	if g.send(other) != gate.Route || g.Access(gate.Read, by(other, "dashboard", "")) != gate.NotConcerned {
		t.Error("the next publish does not pass")
	}
	if g.backend.Load() > 1 {
		t.Error("the backend was given the will")
	}
}

// A will that the broker sends after it has reported the disconnection is refused at once. A publish on another connection
// and, after a tick, on a new connection with the same number, are not.
func TestAWillAfterTheDisconnectionIsRefused(t *testing.T) {
	g := startGateway(t, "")
	g.Tick()
	will := g.fresh("sensor_001")
	g.Disconnected(will, subscription.MayStay)
	next := g.fresh("sensor_001")
	next.Connection = 2
	if g.send(next) != gate.Route {
		t.Errorf("the connection that took over is refused: %s", g.host.last())
	}
	if g.Access(gate.Write, will) != gate.Deny {
		t.Error("the will passes")
	}
	g.Tick()
	if g.send(g.fresh("sensor_001")) != gate.Route {
		t.Errorf("the connection that came after is refused: %s", g.host.last())
	}
}

// A removal from the registry gives no client more rights.
func TestARemovedDeviceStaysConfined(t *testing.T) {
	g := startGateway(t, "")
	database := filepath.Join(filepath.Dir(g.file), "devices.db")
	store, err := registry.OpenStore(database)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Remove(context.Background(), "sensor_001"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); g.registry.Lookup([]byte("sensor_001")) != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the removal is not in force")
		}
		time.Sleep(time.Millisecond)
	}
	for _, topic := range []string{"#", "device/sensor_001/response", "device/sensor_002/data"} {
		p := publish("sensor_001", nil)
		p.Topic = []byte(topic)
		for _, action := range []gate.Action{gate.Subscribe, gate.Read, gate.Write} {
			if got := g.Access(action, p); got != gate.Deny {
				t.Errorf("action %d on %q: decision %d", action, topic, got)
			}
		}
	}
}

func TestRetainedMessagesMayBeServed(t *testing.T) {
	g := startGateway(t, "")
	retained := publish("sensor_001", sign(t, "s", "sensor_001", 1, anID, "1")) // long stale
	retained.Certified, retained.ClientID = false, nil
	if g.Retained(retained) != gate.Allow {
		t.Error("an accepted message is no longer served")
	}
	forged := *retained
	forged.Payload = sign(t, "x", "sensor_001", 1, anID, "1")
	if g.Retained(&forged) != gate.Deny {
		t.Error("a message with a bad signature is served")
	}
	if g.Retained(by(retained, "sensor_002", "")) != gate.Deny {
		t.Error("another's message is served")
	}
	if g.Retained(by(retained, "dashboard", "news")) != gate.NotConcerned {
		t.Error("other topics are the gateway's business")
	}
	for _, topic := range []string{"response", "response/1", "command"} {
		if g.Retained(by(retained, "sensor_001", "device/sensor_001/"+topic)) != gate.Deny {
			t.Errorf("a %s that was retained before the plugin came is served", topic)
		}
	}
}

// Every subscriber gets the same retained messages, whether the broker asks for their source (check_retain_source) or not.
func TestRetainedMessagesMayBeRead(t *testing.T) {
	g := startGateway(t, "[publish]\ntopics = [\"device/+/data\", \"site/+/state\"]\n")
	old := sign(t, "s", "sensor_001", 1, anID, "1")
	for _, c := range []struct {
		topic, payload string
		retain         bool
		want           gate.Decision
	}{
		{"device/sensor_001/data", string(old), true, gate.NotConcerned},
		{"site/sensor_001/state", string(old), true, gate.NotConcerned},
		{"device/sensor_002/data", string(old), true, gate.Deny},
		{"device/sensor_001/data", string(sign(t, "x", "sensor_001", 1, anID, "1")), true, gate.Deny},
		{"device/sensor_001/data", "{}", true, gate.Deny},
		{"device/sensor_001/data", "", true, gate.Deny},
		{"device/sensor_001/data", strings.Repeat("x", 1<<20), true, gate.Deny},
		{"device/nobody/data", string(sign(t, "s", "nobody", 1, anID, "1")), true, gate.Deny},
		{"device//data", string(old), true, gate.Deny},
		{"device/sensor_001/response", "{}", true, gate.Deny},
		{"device/sensor_001/response/x", "{}", true, gate.Deny},
		{"device/sensor_001/command", "{}", true, gate.Deny},
		{"device/sensor_001/response", "{}", false, gate.NotConcerned},
		{"device/sensor_001/data", "{}", false, gate.NotConcerned}, // being published now: Message has decided
		{"news", "{}", true, gate.NotConcerned},
	} {
		p := publish("dashboard", []byte(c.payload))
		p.Topic, p.Retain = []byte(c.topic), c.retain
		if got := g.Access(gate.Read, p); got != c.want {
			t.Errorf("%s, retain %v, %.40q: decision %d, want %d", c.topic, c.retain, c.payload, got, c.want)
		}
	}
}

// The answer to the question about the source depends on the last answer to a subscriber, only for the same bytes at the same
// address.
func TestASourceIsAskedAboutOnce(t *testing.T) {
	g := startGateway(t, "")
	reader := publish("dashboard", sign(t, "s", "sensor_001", 1, anID, "1"))
	reader.Topic, reader.Retain = []byte("device/sensor_001/data"), true
	if g.Access(gate.Read, reader) != gate.NotConcerned {
		t.Fatal(g.host.last())
	}
	source := by(reader, "sensor_001", "")
	copy(source.Payload, "not verified any more") // so that a second check would fail
	if g.Retained(source) != gate.Allow {
		t.Error("the message is verified twice")
	}
	if g.Retained(source) != gate.Deny {
		t.Error("what was allowed once is allowed for ever")
	}
}

func TestADeviceThatKeepsFailingIsDisconnected(t *testing.T) {
	g := startGateway(t, "[publish]\nmax_bad_signatures = 3\n")
	bad := func(device string) *gate.Publish {
		p := publish(device, sign(t, "x", device, time.Now().Unix(), uuid.NewString(), "1"))
		p.ClientID = []byte("client of " + device)
		return p
	}
	// A minute may end between two publishes, and the count starts again: at most once in such a short time.
	for range 6 {
		g.send(bad("sensor_001"))
	}
	g.send(bad("sensor_002"))
	if len(g.host.kicked) != 0 {
		t.Fatal("a client was disconnected while it was being served")
	}
	g.Tick()
	if len(g.host.kicked) == 0 || g.host.kicked[0] != "client of sensor_001" || len(g.host.kicked) > 2 {
		t.Errorf("disconnected: %q", g.host.kicked)
	}
	g.Tick()
	if len(g.host.kicked) > 2 {
		t.Error("disconnected twice")
	}
}

func TestOthers(t *testing.T) {
	for _, c := range []struct {
		setting string
		is2_1   bool
		err     error
		want    Others
	}{
		{config.OthersDefer, false, nil, OthersDefer},
		{config.OthersAllow, false, nil, OthersAllow},
		{config.OthersAuto, false, os.ErrPermission, OthersDefer},
		{config.OthersAuto, true, os.ErrPermission, OthersIgnore},
		{config.OthersAllow, true, nil, OthersIgnore},
	} {
		if got, why := resolveOthers(c.setting, c.is2_1, nil, c.err); got != c.want || why == "" {
			t.Errorf("%+v: %s (%s)", c, got, why)
		}
	}
}
