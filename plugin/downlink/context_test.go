package downlink

import (
	"fmt"
	"strings"
	"testing"
)

func TestResponseContextsAreBounded(t *testing.T) {
	var c contexts
	key := func(device, n int) contextKey { return contextKey{fmt.Sprint(device), fmt.Sprint(n)} }
	if got := c.take(key(1, 1)); got.topic != "" || got.correlation != nil {
		t.Errorf("none was kept: %+v", got)
	}
	c.put(key(1, 1), responseContext{correlation: []byte("c"), topic: "t"})
	if got := c.take(key(2, 1)); got.topic != "" {
		t.Error("another device's")
	}
	if got := c.take(key(1, 1)); got.topic != "t" || string(got.correlation) != "c" {
		t.Errorf("%+v", got)
	}
	if got := c.take(key(1, 1)); got.topic != "" {
		t.Error("it was kept")
	}
	for n := range maxDeviceContexts + 10 {
		c.put(key(1, n), responseContext{topic: "t"})
	}
	if lost, _ := c.counts(); lost != 10 || len(c.kept) != maxDeviceContexts {
		t.Errorf("%d lost, %d kept of one device", lost, len(c.kept))
	}
	// What was never answered, which a backend that answers with nothing leaves behind, is no reason to keep nothing new.
	if got := c.take(key(1, maxDeviceContexts+9)); got.topic != "t" {
		t.Error("the latest of one device was lost")
	}
	if got := c.take(key(1, 9)); got.topic != "" {
		t.Error("the oldest of one device was kept")
	}
	for device := 2; device < 50; device++ {
		for n := range maxDeviceContexts {
			c.put(key(device, n), responseContext{topic: "t"})
		}
	}
	if len(c.kept) > maxContexts || c.order.Len() != len(c.kept) || len(c.byDevice) > 17 {
		t.Errorf("%d kept, %d in order, of %d devices", len(c.kept), c.order.Len(), len(c.byDevice))
	}
	if got := c.take(key(49, maxDeviceContexts-1)); got.topic != "t" {
		t.Error("the latest was lost")
	}
	c.put(key(1, 1), responseContext{correlation: make([]byte, maxCorrelation+1)})
	if got := c.take(key(1, 1)); got.correlation != nil {
		t.Error("long correlation data was kept")
	}
}

func TestTopicsThatADeviceMayChoose(t *testing.T) {
	rs := Responses{options: ResponseOptions{Topic: "device/{device_id}/response", Reserved: func(topic []byte) bool {
		return string(topic) == "device/sensor_001/response/rejected"
	}}}
	for topic, want := range map[string]bool{
		"device/sensor_001/response": true, "device/sensor_001/response/a": true, "device/sensor_001/response/a/b": true,
		"device/sensor_001/responses": false, "device/sensor_002/response": false, "device/sensor_001/response/+": false,
		"device/sensor_001/response/#": false, "device/sensor_001/response/rejected": false, "device/sensor_001/data": false,
		"device/sensor_001/command": false, "": false, "device/sensor_001/response/" + strings.Repeat("x", maxCorrelation): false,
	} {
		if got := rs.mayChoose([]byte(topic), "sensor_001"); got != want {
			t.Errorf("%.60q: %v", topic, got)
		}
	}
}
