package gate

import (
	"strings"
	"testing"
)

func TestGatedTopics(t *testing.T) {
	for _, test := range []struct {
		filter, topic, device string
		gated                 bool
	}{
		{"device/+/data", "device/sensor_001/data", "sensor_001", true},
		{"device/+/data", "device//data", "", true},
		{"device/+/data", "device/a/b/data", "", false},
		{"device/+/data", "device/data", "", false},
		{"device/+/data", "device/a/data/", "", false},
		{"device/+/data", "/device/a/data", "", false},
		{"device/+/data", "Device/a/data", "", false},
		{"device/+/data", "device/a/dat", "", false},
		{"device/+/data", "", "", false},
		{"device/+/data", "device/+/data", "+", true},
		{"+/data", "a/data", "a", true},
		{"+/data", "/data", "", true},
		{"device/+", "device/a", "a", true},
		{"device/+", "device/", "", true},
		{"device/+", "device", "", false},
		{"+", "a", "a", true},
		{"+", "a/b", "", false},
	} {
		level, gated := NewTopics(TopicConfig{Gated: []string{"none/+/such", test.filter}}).Gated([]byte(test.topic))
		if gated != test.gated || gated && string(level) != test.device {
			t.Errorf("%s against %q: %q %v", test.topic, test.filter, level, gated)
		}
	}
}

// FuzzGatedTopic compares the matcher with the rules of the MQTT specification: levels, one by one.
func FuzzGatedTopic(f *testing.F) {
	for _, filter := range []string{"device/+/data", "+/data", "device/+", "+", "a//+/b", "/+/"} {
		for _, topic := range []string{"device/a/data", "device//data", "a", "", "/", "a//b/b", "//", "device/a/b/data", "+/data"} {
			f.Add(filter, topic)
		}
	}
	f.Fuzz(func(t *testing.T, filter, topic string) {
		want := strings.Split(filter, "/")
		plus := -1
		for i, level := range want {
			if strings.Contains(level, "+") {
				if level != "+" || plus >= 0 {
					return // the configuration does not accept this filter
				}
				plus = i
			}
		}
		if plus < 0 {
			return
		}
		levels := strings.Split(topic, "/")
		matches := len(levels) == len(want)
		for i := range levels {
			matches = matches && (i == plus || levels[i] == want[i])
		}
		level, gated := NewTopic(filter).Device([]byte(topic))
		if gated != matches || gated && string(level) != levels[plus] {
			t.Errorf("%q against %q: %q %v, want %v", topic, filter, level, gated, matches)
		}
	})
}
