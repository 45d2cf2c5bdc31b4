package test

import (
	"bytes"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/testkit"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// keyed returns a device with a new key, and the file of its public half.
func keyed(g *harness.Gateway, id string, a publickey.Algorithm) (d *device.Device, public string) {
	g.Helper()
	private := testkit.PrivateKey(g, string(a))
	signer, err := publickey.NewSigner(private)
	g.Must(err)
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	g.Must(err)
	public = filepath.Join(g.Broker.Dir, id+"."+fmt.Sprintf("%x", signer.Public().Fingerprint())[:8]+".pub")
	g.Must(os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	own := *g.Device(id)
	own.Signer = signer
	return &own, public
}

// TestDevicesWithPublicKeys: registered while the broker runs, such a device is accepted over both protocols, and refused with
// any other signature; its message is known again after a lost acknowledgement and after a restart, signed with another
// signature too. The database, stolen, signs nothing. Commands are refused as long as the gateway has no key to sign them with.
func TestDevicesWithPublicKeys(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	g.Watch()
	withSecret := g.Device("sensor_001")
	for id, a := range map[string]publickey.Algorithm{"ed25519": publickey.Ed25519, "p256": publickey.P256} {
		d, public := keyed(g, id, a)
		other, otherPublic := keyed(g, id, a)
		g.Bouncerctl(program, "device", "add", id, "--key", public, "--no-cert", "--out", filepath.Join(t.TempDir(), "bundle"))
		g.Eventually("the device is registered", func() bool {
			c := g.Connect(d, harness.MQTT5)
			m := d.Sign("0")
			if ack := g.Publish(c, d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
				return false
			}
			g.Expect(d.DataTopic(), m)
			return true
		})
		for _, p := range harness.BothProtocols {
			c := g.Connect(d, p)
			for qos := range byte(3) {
				g.Accept(c, qos, d.Sign(`{"t": 22.5, "a": [1]}`))
			}
			refuse := func(m device.Message, reason string) { g.Refuse(c, d.DataTopic(), 1, m, reason) }
			refuse(other.Sign("1"), "bad_signature")
			refuse(d.Sign("1").Tampered(`"payload":1`, `"payload":2`), "bad_signature")
			mine := *d
			mine.Signer = nil // its certificate, and a secret
			refuse(mine.Sign("1"), "bad_signature")
			refuse(d.Sign("1", device.As("sensor_001")), "identity_mismatch")
			s := g.Connect(withSecret, p)
			g.Refuse(s, withSecret.DataTopic(), 1, func() device.Message { m := d.Sign("1", device.As("sensor_001")); return m }(), "bad_signature")

			// A stolen database: every text and number in it, as the secret of an HMAC.
			db, err := sql.Open("sqlite3", g.Broker.Path("devices.db"))
			g.Must(err)
			var placeholder []byte
			var key string
			g.Must(db.QueryRow("SELECT shared_secret, public_key FROM devices JOIN public_keys USING (device_id) WHERE device_id = ?", id).Scan(&placeholder, &key))
			g.Must(db.Close())
			for _, secret := range [][]byte{placeholder, []byte(hex.EncodeToString(placeholder)), []byte(key), {}} {
				thief := *d
				thief.Signer = envelope.NewSigner(append(secret, 'x')[:max(1, len(secret))])
				refuse(thief.Sign("1"), "bad_signature")
			}

			// The acknowledgement is lost.
			first := g.Open(d, p, "lost", true)
			at, m := time.Now(), d.Sign("22")
			again := func() harness.Packet {
				return harness.Packet{QoS: 1, ID: 1, Message: d.Sign("22", device.SignedAt(at), device.WithMessageID(m.MessageID))}
			}
			m = d.Sign("22", device.SignedAt(at), device.WithMessageID(m.MessageID))
			first.Lose(harness.Packet{QoS: 1, ID: 1, Message: m})
			second := first.Again(true, true)
			second.Succeed(again())
			g.Delivered(d.DataTopic(), m.Bytes)
			second.Refuse(d.DataTopic(), again(), "replay")
			second.Cut()
		}
		if s := g.Ask("POST", "/v1/devices/"+id+"/commands", "1"); s.Status != 409 || s.Reason != "no_command_key" {
			t.Errorf("a command: %d %s", s.Status, s.Text)
		}

		g.Bouncerctl(program, "device", "rotate", id, "--key", otherPublic, "--now")
		c := g.Connect(other, harness.MQTT5)
		g.Eventually("the new key is in force", func() bool {
			m := other.Sign("0")
			if ack := g.Publish(c, d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
				return false
			}
			g.Expect(d.DataTopic(), m)
			return true
		})
		g.Refuse(c, d.DataTopic(), 1, d.Sign("1"), "bad_signature")
		// Its connections end, maybe while it publishes, so what is asked is the gateway.
		g.Disable(id, true)
		if s := g.Ask("GET", "/v1/devices/"+id, ""); !bytes.Contains(s.Text, []byte(`"disabled":true`)) {
			t.Errorf("not disabled: %d %s", s.Status, s.Text)
		}
		g.Disable(id, false)
	}
	g.Accept(g.Connect(withSecret, harness.MQTT5), 1, withSecret.Sign("1"))
}

// TestKeyRedeliveryOverARestart: a message of a device with a public key that was accepted before a restart of the broker is
// acknowledged after it, signed with another signature, and is not delivered again.
func TestKeyRedeliveryOverARestart(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{})
	d, public := keyed(g, "p256", publickey.P256)
	g.Bouncerctl(program, "device", "add", d.ID, "--key", public, "--no-cert", "--out", filepath.Join(t.TempDir(), "bundle"))
	at := time.Now()
	var m device.Message
	g.Eventually("the device is registered", func() bool {
		m, at = d.Sign("22"), time.Now()
		m = d.Sign("22", device.WithMessageID(m.MessageID), device.SignedAt(at))
		c := g.Open(d, harness.MQTT5, "fixed", true)
		defer c.Cut()
		return c.Publish(d.DataTopic(), harness.Packet{QoS: 1, ID: 1, Message: m}).Accepted()
	})
	g.Posted(m)
	g.Must(g.Broker.Restart())
	resent := d.Sign("22", device.WithMessageID(m.MessageID), device.SignedAt(at))
	if string(resent.Bytes) == string(m.Bytes) {
		t.Fatal("the same signature twice")
	}
	c := g.Open(d, harness.MQTT5, "fixed", true)
	if ack := c.Publish(d.DataTopic(), harness.Packet{QoS: 1, ID: 2, Message: resent}); !ack.Accepted() {
		t.Errorf("sent again: %v", ack)
	}
	next := d.Sign("23")
	c.Publish(d.DataTopic(), harness.Packet{QoS: 1, ID: 3, Message: next})
	g.Posted(next)
	if n := len(g.Backend.Requests()); n != 2 {
		t.Errorf("%d requests for 2 messages", n)
	}
}
