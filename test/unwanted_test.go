package test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// Responses that no client takes must not stay in the broker's memory: those for devices that do not subscribe, those for
// devices that are away and had subscribed with QoS 0, and those that no longer fit in the queue of a device that is
// away.
func TestUnwantedResponsesCostNoMemory(t *testing.T) {
	const (
		responses = 30_000
		warmUp    = 10_000
		queue     = 100
		growth    = 10 << 20 // bytes; kept responses would be 30 MiB at least
	)
	ids := harness.DeviceIDs(12)
	g := harness.New(t, broker.Options{Devices: append(ids, "witness"), Quiet: true,
		Conf: fmt.Sprintf("max_queued_messages %d\nsys_interval 1", queue)})
	body := []byte(`"` + strings.Repeat("x", 1<<10) + `"`)
	g.Backend.Script(func(*backend.Request) backend.Answer { return backend.Answer{Body: body} })
	var devices []*device.Device
	for i, id := range ids {
		d := g.Device(id)
		devices = append(devices, d)
		if i%3 > 0 {
			leave(g, d, byte(i%3-1))
		}
	}
	witness := g.Connect(g.Device("witness"), harness.MQTT5)
	g.Must(witness.Subscribe(g.Limit(), witness.ResponseTopic(), 1))
	observer := g.Connect(g.Device("observer"), harness.MQTT5)
	g.Must(observer.Subscribe(g.Limit(), "$SYS/broker/#", 0))

	// send has n messages answered, and returns when the broker has had every response.
	sent := 0
	send := func(n int) {
		g.Helper()
		target := sent + n
		load := device.Load{Devices: devices, Window: 20, Rate: 4000, Payload: []byte(harness.Payload)}
		report := g.During(load, func(ctx context.Context) error {
			_, err := g.Backend.Wait(ctx, target)
			return err
		})
		sent += report.Accepted
		if report.Refused > 0 {
			g.Fatalf("%d messages were refused", report.Refused)
		}
		if _, err := g.Backend.Wait(g.Limit(), sent); err != nil {
			g.Fatal(err)
		}
		// The way back is one queue: what came before the witness's response has gone before it.
		before := len(witness.Inbox().All())
		g.Accept(witness, 1, witness.Sign(harness.Payload))
		sent++
		if _, err := witness.Inbox().WaitCount(g.Limit(), witness.ResponseTopic(), before+1); err != nil {
			g.Fatal(err)
		}
	}
	send(warmUp)
	before, _, err := g.Broker.Process().Memory()
	g.Must(err)
	send(responses)
	after, _, err := g.Broker.Process().Memory()
	g.Must(err)

	if after-before > growth {
		g.Errorf("the broker grew from %d to %d KiB over %d responses that no client took, want %d KiB more at most",
			before>>10, after>>10, responses, growth>>10)
	}
	stored := stored(g, observer)
	if most := len(ids)*queue + 200; stored > most {
		g.Errorf("the broker holds %d messages, want %d at most", stored, most)
	}
	if said := g.Broker.Log().Find(0, broker.Contains("bouncer: ", "response")); len(said) > 0 {
		g.Errorf("not every response was published:\n\t%s", strings.Join(said, "\n\t"))
	}
	t.Logf("%d responses: resident %d KiB before, %d KiB after, %d messages stored", responses, before>>10, after>>10, stored)
}

// leave makes a session that lasts, subscribed to the device's responses, and disconnects it.
func leave(g *harness.Gateway, d *device.Device, qos byte) {
	g.Helper()
	hour := uint32(3600)
	c, err := d.ConnectV5(g.Limit(), func(c *paho.Connect) {
		c.CleanStart = false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: &hour}
	})
	g.Must(err)
	g.Must(c.Subscribe(g.Limit(), d.ResponseTopic(), qos))
	g.Must(c.Close())
}

// stored is the number of messages in the broker's memory, by its own account.
func stored(g *harness.Gateway, observer *harness.Client) int {
	g.Helper()
	// The broker publishes all its figures together: after two of one, all are from later than now.
	begin, uptimes := time.Now(), 0
	_, err := observer.Inbox().Wait(g.Limit(), func(r device.Received) bool {
		if r.Topic == "$SYS/broker/uptime" && r.At.After(begin) {
			uptimes++
		}
		return uptimes == 2
	})
	g.Must(err)
	counts := observer.Inbox().On("$SYS/broker/store/messages/count")
	if len(counts) == 0 {
		g.Fatal("the broker does not tell how many messages it stores")
	}
	n, err := strconv.Atoi(string(counts[len(counts)-1].Payload))
	g.Must(err)
	return n
}
