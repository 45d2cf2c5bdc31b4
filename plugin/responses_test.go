package plugin

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
)

func TestResponseTopics(t *testing.T) {
	g := startGateway(t, "[rejected]\ntopic = \"device/{device_id}/response/rejected\"\n")
	for topic, want := range map[string]bool{
		"device/sensor_001/response": true, "device/sensor_001/response/a": true, "device/sensor_001/response/a/b": true,
		"device/sensor_001/responses": false, "device/sensor_002/response": false, "device/sensor_001/response/+": false,
		"device/sensor_001/response/#": false, "device/sensor_001/response/rejected": false, "device/sensor_001/data": false,
		"device/sensor_001/command": false, "device/sensor_001/response/" + strings.Repeat("x", 1024): false,
	} {
		before := g.figure("response_topics_ignored_total")
		asking := g.fresh("sensor_001")
		asking.ResponseTopic = []byte(topic)
		if g.send(asking) != gate.Route {
			t.Fatal(g.host.last())
		}
		if got := g.figure("response_topics_ignored_total") == before; got != want {
			t.Errorf("%.60q: %v", topic, got)
		}
	}
	for topic, want := range map[string]gate.Decision{
		"device/sensor_001/response/a": gate.AllowCertified, "device/sensor_001/response/+": gate.Deny, "device/sensor_001/response/#": gate.Deny,
		"device/sensor_002/response/a": gate.Deny, "device/+/response/a": gate.Deny, "device/sensor_001/response": gate.AllowCertified,
	} {
		subscription := by(&gate.Publish{}, "sensor_001", topic)
		subscription.Certified = true
		if got := g.Access(gate.Subscribe, subscription); got != want {
			t.Errorf("subscribing to %s: %d, want %d", topic, got, want)
		}
	}
}

// commandRetry is the least time between two deliveries of one command.
const commandRetry = time.Second

// TestSubscribingSendsOnce: a command that was given to the broker after the device subscribed is not given to it again.
func TestSubscribingSendsOnce(t *testing.T) {
	g, _ := startHTTP(t)
	given := make(map[string]int)
	tick := func(during time.Duration) {
		for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(time.Millisecond) {
			g.Tick()
			for _, p := range g.host.published {
				given[string(p.Payload)]++
			}
			g.host.published = nil
		}
	}
	for range 2 { // two that were sent at different times, the latter less than commandRetry ago
		_, err := g.service.Send(t.Context(), httpd.NewCommand{Device: "sensor_001", Body: []byte("1"), TTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		tick(commandRetry * 6 / 10)
	}
	// A client that uses the name without the certificate causes nothing.
	uncertified := by(&gate.Publish{}, "sensor_001", "device/sensor_001/command")
	uncertified.ClientID = []byte("another")
	if g.Access(gate.Subscribe, uncertified) != gate.AllowCertified {
		t.Fatal("no answer to a subscription without a certificate")
	}
	tick(2 * commandRetry)
	if n := slices.Collect(maps.Values(given)); !slices.Equal(n, []int{1, 1}) {
		t.Errorf("given to the broker %v times before the device subscribed", n)
	}
	if g.Access(gate.Subscribe, by(&gate.Publish{Certified: true}, "sensor_001", "device/sensor_001/command")) != gate.AllowCertified {
		t.Fatal("no subscription")
	}
	tick(4 * commandRetry)
	for _, n := range slices.Collect(maps.Values(given)) {
		if n != 2 {
			t.Errorf("given to the broker %d times, not once when it came and once for the subscription", n)
		}
	}
	if len(given) != 2 {
		t.Errorf("%d commands", len(given))
	}
}

// TestRestartSendsAgain: the broker may have lost commands in a crash, and a device whose session it has kept does not
// subscribe again.
func TestRestartSendsAgain(t *testing.T) {
	g, _ := startHTTP(t)
	given := func() (payload string) {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && len(g.host.published) == 0; time.Sleep(time.Millisecond) {
			g.Tick()
		}
		for _, p := range g.host.published {
			payload = string(p.Payload)
		}
		g.host.published = nil
		return payload
	}
	_, err := g.service.Send(t.Context(), httpd.NewCommand{Device: "sensor_001", Body: []byte("1"), TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	first := given()
	time.Sleep(commandRetry)
	g.Stop()
	if g.Gateway, err = Start(g.file, g.host); err != nil {
		t.Fatal(err)
	}
	if again := given(); first == "" || again != first {
		t.Errorf("before %q, after the start %q", first, again)
	}
}

// TestMetricsDuringTheStart: requests are served before the start is over. For the race detector.
func TestMetricsDuringTheStart(t *testing.T) {
	address, settings := httpSettings(t)
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	answers := 0
	asking.Go(func() {
		for ctx.Err() == nil {
			r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
			r.Header.Set("Authorization", "Bearer token")
			if a, err := http.DefaultClient.Do(r); err == nil { // no server listens between two gateways
				a.Body.Close()
				answers++
			}
		}
	})
	for range 8 {
		g := startGateway(t, settings)
		time.Sleep(30 * time.Millisecond)
		g.Stop()
	}
	cancel()
	asking.Wait()
	if answers == 0 {
		t.Error("no answer")
	}
}
