package bundle

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
)

// TestBundle: what the device gets with and without a certificate, a secret and a response topic.
func TestBundle(t *testing.T) {
	ca, err := pki.NewCA("CA", time.Now(), pki.CALifetime)
	if err != nil {
		t.Fatal(err)
	}
	var settings config.Config
	settings.Publish.Topics = []string{"device/+/data"}
	m := Maker{Config: &settings, Host: "broker.example", Port: 8883}
	text := func(b Bundle) string { return string(b[len(b)-1].Content) }

	b, cert, _, err := m.New("sensor_001", Credential{Secret: []byte("s3cret")})
	if err != nil || !slices.Equal(b.Names(), []string{"secret", "device.json", "README"}) || !cert.Expires.IsZero() {
		t.Errorf("%v, %v, %v", b.Names(), cert, err)
	}
	if got := text(b); !strings.Contains(got, "-t device/sensor_001/data") || strings.Contains(got, "mosquitto_rr") || strings.Contains(got, "s3cret") {
		t.Error(got)
	}

	m.CA, settings.Response.Topic = ca, "device/"+config.DeviceID+"/response"
	b, cert, _, err = m.New("sensor_001", Credential{Secret: []byte("s3cret")})
	if err != nil || !slices.Equal(b.Names(), []string{"ca.crt", "device.crt", "device.key", "secret", "device.json", "README"}) || cert.Expires.IsZero() {
		t.Errorf("%v, %v, %v", b.Names(), cert, err)
	}
	// One command publishes and waits for the answer: a second connection of the device would end the first.
	if got := text(b); !strings.Contains(got, "mosquitto_rr -h broker.example -p 8883") || !strings.Contains(got, "-e device/sensor_001/response") ||
		strings.Contains(got, "    mosquitto_sub") {
		t.Error(got)
	}
	for _, f := range b {
		if secret := f.Name == "secret" || f.Name == "device.key"; secret != (f.Mode == 0o600) {
			t.Errorf("%s has mode %04o", f.Name, f.Mode)
		}
	}

	b, _, err = m.Update("sensor_001", nil, nil, time.Time{})
	if err != nil || !slices.Equal(b.Names(), []string{"ca.crt", "device.crt", "device.key", "README"}) {
		t.Errorf("%v, %v", b.Names(), err)
	}
}

// TestCommandKeysInBundle: a device that signs with a public key gets the gateway's keys of its own algorithm, also with a renewed
// certificate, and the text says what for; a device with a secret gets none. The text names every file.
func TestCommandKeysInBundle(t *testing.T) {
	ca, err := pki.NewCA("CA", time.Now(), pki.CALifetime)
	if err != nil {
		t.Fatal(err)
	}
	var settings config.Config
	settings.Publish.Topics = []string{"device/+/data"}
	now := time.Now()
	if settings.Command.Keys, err = (*commandkey.Set)(nil).With(now, now, commandkey.Algorithms()...); err != nil {
		t.Fatal(err)
	}
	m := Maker{Config: &settings, CA: ca, Host: "broker.example", Port: 8883}
	for _, c := range []struct {
		credential Credential
		keys       bool
	}{{Credential{Secret: []byte("s3cret")}, false}, {Credential{Certificate: true}, true}} {
		b, _, key, err := m.New("sensor_001", c.credential)
		if err != nil {
			t.Fatal(err)
		}
		bundles := []Bundle{b}
		if key != nil {
			b, _, err := m.Update("sensor_001", nil, key, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			bundles = append(bundles, b)
		}
		for _, b := range bundles {
			readme := string(b[len(b)-1].Content)
			if got := slices.Contains(b.Names(), "command-keys.pem"); got != c.keys || strings.Contains(readme, "command-keys.pem") != c.keys {
				t.Errorf("%v: %s", b.Names(), readme)
			}
			if b.Names()[len(b)-2] == "device.json" && !strings.Contains(readme, "device.json") {
				t.Error(readme)
			}
		}
	}
}
