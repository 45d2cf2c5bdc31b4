package device_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"time"

	device "mosquitto-bouncer/device/go"
)

// A device that publishes a value, and sets its interval when it is told to.
func Example() {
	d, err := device.FromBundle("sensor_001", device.Options{})
	if err != nil {
		log.Fatal(err)
	}
	d.OnCommand = func(_ context.Context, c device.Command) (device.Reply, error) {
		var order struct {
			Set     string
			Seconds int
		}
		if err := json.Unmarshal(c.Body, &order); err != nil || order.Set != "interval" {
			return device.Reply{Status: device.Rejected}, nil
		}
		return device.Reply{Status: device.Succeeded, Result: map[string]int{"seconds": order.Seconds}}, nil
	}
	if err := d.Start(); err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	delivery, err := d.Publish(ctx, map[string]any{"temperature": 22.5})
	if err != nil {
		log.Fatal(err)
	}
	outcome, err := delivery.Wait(ctx)
	fmt.Println(outcome.Kind, outcome.Reason, err)
}

// The core alone: a message is signed.
func ExampleSign() {
	credential, err := device.Secret([]byte("supersecretkey123"))
	if err != nil {
		log.Fatal(err)
	}
	message, err := device.Sign(credential, device.Message{
		DeviceID: "sensor_001", Timestamp: 1727712000, MessageID: "550e8400-e29b-41d4-a716-446655440000", Payload: []byte(`{"a":1}`),
	})
	fmt.Println(string(message), err)
	_, err = device.Sign(credential, device.Message{
		DeviceID: "sensor_001", Timestamp: 1727712000, MessageID: "550e8400-e29b-41d4-a716-446655440000", Payload: []byte(`NaN`),
	})
	fmt.Println(device.ReasonOf(err))
	// Output:
	// {"device_id":"sensor_001","timestamp":1727712000,"message_id":"550e8400-e29b-41d4-a716-446655440000","payload":{"a":1},"signature":"4258a935ea3ab81c942f19e799216042c8ae42ca80ce9757e5805fc4eb012851"} <nil>
	// payload
}
