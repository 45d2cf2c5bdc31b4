package test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestHealthOfStores: 200 means that every store can be written now.
func TestHealthOfStores(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	g.HealthSays(200, "")
	commands := g.Broker.Path("state/commands.db")
	g.Must(os.Rename(commands, commands+".away"))
	g.HealthSays(503, "commands.db cannot be written")
	if s := g.Ask("POST", "/v1/devices/sensor_001/commands", "1"); s.Status < 500 {
		t.Errorf("a command that no restart would find is taken: %d %s", s.Status, s.Text)
	}
	g.Must(os.Rename(commands+".away", commands))
	g.HealthSays(200, "")
	dead := g.Broker.Path("state/dead.db")
	g.Must(os.Rename(dead, dead+".away"))
	g.Must(os.Mkdir(dead, 0o700))
	g.HealthSays(503, "dead.db cannot be written")
	g.Must(os.Remove(dead))
	g.Must(os.Rename(dead+".away", dead))
	g.HealthSays(200, "")
}

// TestSlowClients: clients that send their requests a byte at a time, or nothing at all, keep no client out, and are cut
// off.
func TestSlowClients(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	const slow = 300
	begin := time.Now()
	var ended sync.WaitGroup
	var answered atomic.Int64
	for i := range slow {
		conn, err := net.Dial("tcp", g.Broker.HTTPAddr())
		g.Must(err)
		t.Cleanup(func() { _ = conn.Close() })
		ended.Go(func() {
			for !t.Failed() && i%3 > 0 { // two of three never fall silent
				if _, err := conn.Write([]byte("POST /v1/devices/x/commands HTTP/1.1\r\nContent-Length: 60000\r\nX: "[i%5:][:1])); err != nil {
					break
				}
				_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if n, err := conn.Read(make([]byte, 100)); n > 0 {
					answered.Add(1)
					break
				} else if !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
					break
				}
			}
			_ = conn.SetReadDeadline(time.Now().Add(harness.Patience))
			_, err := io.Copy(io.Discard, conn)
			if isTimeout(err) {
				t.Error("a slow client was not cut off")
			}
		})
	}
	for range 20 {
		at := time.Now()
		if s := g.Ask("POST", "/v1/devices/sensor_001/commands", "1"); s.Status != 202 {
			t.Errorf("with slow clients: %d %s", s.Status, s.Text)
		}
		if took := time.Since(at); took > 2*time.Second {
			t.Errorf("with slow clients an answer took %v", took)
		}
	}
	ended.Wait()
	t.Logf("%d slow clients were cut off within %v, %d with an answer", slow, time.Since(begin).Round(time.Millisecond), answered.Load())
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// TestHealthAndMetrics reads both, with and without the token.
func TestHealthAndMetrics(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	c := g.Connect(g.Device("sensor_001"), harness.MQTT5)
	g.Accept(c, 1, c.Sign("1"))
	g.Refuse(c, c.DataTopic(), 1, device.Message{DeviceID: c.ID, Bytes: []byte("{}")}, "malformed")
	g.Ask("POST", "/v1/devices/sensor_001/commands", "1")
	if s := g.Ask("GET", "/healthz", "", "Authorization", ""); s.Status != 200 || string(s.Text) != "{\"status\":\"ok\"}\n" {
		t.Errorf("health: %d %s", s.Status, s.Text)
	}
	text := string(g.Ask("GET", "/metrics", "").Text)
	for _, want := range []string{
		`bouncer_publishes_total{verdict="accepted"} 1`, `bouncer_publishes_total{verdict="malformed"} 1`,
		"bouncer_messages_accepted_total 1", "bouncer_replay_ids 1", "bouncer_registry_devices 1",
		"bouncer_commands_created_total 1", `bouncer_build_info{version="`, `bouncer_callback_seconds_bucket{callback="access",le="1e-06"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "sensor_001") {
		t.Error("a device's id is in the metrics")
	}
	// Without its database the gateway continues, and says so.
	g.Must(os.Rename(g.Broker.Path("devices.db"), g.Broker.Path("moved.db")))
	for deadline := time.Now().Add(harness.Patience); ; time.Sleep(20 * time.Millisecond) {
		s := g.Ask("GET", "/healthz", "")
		if s.Status == 503 && strings.Contains(s.Detail, "device database") {
			if s := g.Ask("GET", "/healthz", "", "Authorization", ""); s.Status != 503 || strings.Contains(s.Detail, "database") {
				t.Errorf("without the token: %s", s.Text)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("without its database: %d %s", s.Status, s.Text)
		}
	}
}
