package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
)

// TestBackendRefuses has a real backend refuse everybody: the log, the health and the metrics say so, no message becomes a
// dead letter, a restart of the broker forgets nothing, and once the backend takes messages all are delivered, in order.
// The answers come wrapped.
func TestBackendRefuses(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusNotFound, http.StatusFound} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			g := harness.New(t, broker.Options{
				Devices: []string{"sensor_001", "sensor_002"}, HTTP: true, Settings: map[string]any{"response.wrap": true},
			})
			g.Watch()
			g.Backend.Script(backend.Status(status))
			one, two := g.Connect(g.Device("sensor_001"), harness.MQTT311), g.Connect(g.Device("sensor_002"), harness.MQTT5)
			refused := []*harness.Client{one, two, one}
			for n, c := range refused {
				m := c.Sign(fmt.Sprint(n))
				g.Publish(c, c.DataTopic(), 1, m.Bytes)
				g.Expect(c.DataTopic(), m)
			}
			refusing := func() bool {
				return g.Ask("GET", "/healthz", "").Status == 503 && bytes.Contains(g.Ask("GET", "/metrics", "").Text, []byte("bouncer_backend_refusing 1"))
			}
			g.Eventually("health and metrics tell of a backend that refuses", refusing)
			if text := g.Ask("GET", "/metrics", "").Text; !bytes.Contains(text, fmt.Appendf(nil, `bouncer_backend_responses_total{status="%d"}`, status)) {
				t.Errorf("%s", text)
			}
			_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: backend is refusing every message", fmt.Sprint("status=", status)))
			g.Must(err)
			g.Must(g.Broker.Restart())
			g.Eventually("the restarted gateway knows", refusing)

			two = g.Connect(g.Device("sensor_002"), harness.MQTT311)
			g.Must(two.Subscribe(g.Limit(), two.ResponseTopic(), 1))
			g.Backend.Script(backend.OK)
			g.Eventually("everything is delivered", func() bool {
				text := g.Ask("GET", "/metrics", "").Text
				return bytes.Contains(text, []byte("bouncer_messages_delivered_total 3")) && bytes.Contains(text, []byte("bouncer_messages_dead_total 0"))
			})
			if s := g.Ask("GET", "/healthz", ""); s.Status != 200 {
				t.Errorf("%+v", s)
			}
			_, err = g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: backend takes messages again"))
			g.Must(err)
			var wrapped struct {
				MessageID  string `json:"message_id"`
				AcceptedAt string `json:"accepted_at"`
				Status     int
				Body       struct {
					DeviceID string `json:"device_id"`
				}
			}
			got := g.Response(two, 1)
			if err := json.Unmarshal(got.Payload, &wrapped); err != nil || wrapped.Status != 200 || wrapped.Body.DeviceID != "sensor_002" ||
				len(wrapped.MessageID) != 36 || wrapped.AcceptedAt == "" {
				t.Errorf("%s %v", got.Payload, err)
			}
		})
	}
}

// TestOldAnswersAfterRequeue has a message die and be requeued when it is older than [response] max_age: the backend gets
// it, and its device gets no answer, as it gets one to a message that is new.
func TestOldAnswersAfterRequeue(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true, Settings: map[string]any{"response.max_age": "1s"}})
	g.Watch()
	g.Backend.Script(backend.Status(http.StatusUnprocessableEntity))
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Must(c.Subscribe(g.Limit(), c.ResponseTopic(), 1))
	old, sent := c.Sign(`"old"`), time.Now()
	g.Publish(c, c.DataTopic(), 1, old.Bytes)
	g.Expect(c.DataTopic(), old)
	metric := func(line string) func() bool {
		return func() bool { return bytes.Contains(g.Ask("GET", "/metrics", "").Text, []byte("\n"+line+"\n")) }
	}
	g.Eventually("it is dead", metric("bouncer_messages_dead_total 1"))
	g.Backend.Script(backend.OK)
	g.Eventually("it is old", func() bool { return time.Since(sent) > 1100*time.Millisecond })
	g.Bouncerctl(program, "dead", "requeue", "--device", "sensor_001")
	g.Eventually("it is delivered", metric("bouncer_messages_delivered_total 1"))
	fresh := c.Sign(`"fresh"`)
	g.Accept(c, 1, fresh)
	if got := g.Response(c, 1); !bytes.Contains(got.Payload, []byte("sensor_001")) {
		t.Errorf("%s", got.Payload)
	}
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: the answer to an old message was dropped"))
	g.Must(err)
}
