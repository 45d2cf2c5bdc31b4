package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/uuid"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// named is a client whose certificate has this value as its common name, in the encoding that the value implies, and
// which has the secret of the device as it is told.
func named(g *harness.Gateway, value any, id string, secret []byte) *device.Device {
	g.Helper()
	caKey, err := g.Broker.CA().KeyPEM()
	g.Must(err)
	ca, err := tls.X509KeyPair(g.Broker.CA().CertPEM(), caKey)
	g.Must(err)
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	g.Must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.Must(err)
	name := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: value}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{name}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), ca.PrivateKey)
	g.Must(err)
	d := *g.Device("monitor")
	d.ID, d.Secret, d.Certificate = id, secret, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &d
}

// TestCommonNames has certificates whose common names mean something to MQTT, or are written so that other bytes of them
// spell a device's. The database, made by the Python gateway, has them all as devices.
func TestCommonNames(t *testing.T) {
	bmp := func(text string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte(text)} }
	names := []string{"a/b", "+", "#", "sensor_001/data", "/", "$share", "sensor_001 ", "Sensor_001", "sensor_00\u0661"}
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001", "witness"}, PythonDatabase: true})
	g.Watch()
	const secret = "known to every one of them"
	for _, name := range names {
		g.Must(g.Broker.SQL("INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, ?)", name, secret, time.Now().Unix()))
	}
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: skipped rows that are not devices", fmt.Sprintf("rows=%d ", len(names)-1)))
	g.Must(err) // all but Sensor_001, which is one
	one := g.Device("sensor_001")
	for _, name := range names {
		d := named(g, name, name, []byte(secret))
		for _, p := range harness.BothProtocols {
			c := g.Open(d, p, "client", true)
			refuse := func(topic string, m device.Message, reason string) {
				g.Helper()
				c.Refuse(topic, harness.Packet{QoS: 1, ID: 1, Message: m}, reason)
			}
			refuse(one.DataTopic(), one.Sign("22"), "topic_mismatch")
			refuse(one.DataTopic(), d.Sign("22", device.As("sensor_001")), "topic_mismatch")
			refuse(one.ResponseTopic(), device.Message{Bytes: []byte("hello")}, "forbidden_topic")
			if name != "Sensor_001" && !strings.ContainsAny(name, "/+#") { // with those, its topic is not gated
				refuse(d.DataTopic(), device.Message{Bytes: fmt.Appendf(nil,
					`{"device_id":%q,"timestamp":%d,"message_id":"%s","payload":22,"signature":"%064d"}`, name, time.Now().Unix(), uuid.New(), 0,
				)}, "malformed")
			}
		}
	}
	// To the CA that issued this certificate it names 獥湳潲弰〱. The broker takes its bytes for a name.
	impostor := named(g, bmp("sensor_001"), "sensor_001", one.Secret)
	for _, p := range harness.BothProtocols {
		m := one.Sign("22")
		g.ExpectRefusal(one.DataTopic(), m, "under a name in another encoding")
		mark := g.Broker.Log().Mark()
		ack := g.Open(impostor, p, "client", true).Publish(one.DataTopic(), harness.Packet{QoS: 1, ID: 1, Message: m})
		if ack.Code != p.Refusal(1) {
			g.Errorf("a name in another encoding: %v", ack)
			continue
		}
		line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: refused "))
		g.Must(err)
		if harness.Fields(line)["reason"] != "no_tls_identity" {
			g.Errorf("a name in another encoding; the log says: %s", line)
		}
	}
	g.Accept(g.Connect(one, harness.MQTT5), 1, one.Sign("22"))
	g.NothingElse("witness")
}

// TestTooManyBadSignatures has a client disconnected that does not have the secret, and no other.
func TestTooManyBadSignatures(t *testing.T) {
	const limit = 5
	ids := []string{"sensor_001", "sensor_002"}
	g := harness.New(t, broker.Options{
		Devices: append(ids, "neighbour"), Settings: map[string]any{"publish.max_bad_signatures": limit},
	})
	g.Watch()
	for i, p := range harness.BothProtocols {
		g.Sub(p.String(), func(g *harness.Gateway) {
			d := g.Device(ids[i])
			honest, neighbour := g.Connect(d, p), g.Connect(g.Device("neighbour"), p)
			thief := *d // with the stolen certificate alone
			thief.Secret = []byte("guessed")
			c := g.Connect(&thief, p)
			for range limit {
				g.Refuse(c, d.DataTopic(), 1, device.Message{Bytes: []byte("22")}, "malformed") // does not count
			}
			mark := g.Broker.Log().Mark()
			for round := 1; ; round++ {
				minute := time.Now().Unix() / 60
				for range limit {
					m := thief.Sign("22")
					g.ExpectRefusal(d.DataTopic(), m, "by a thief")
					if ack := g.Publish(c, d.DataTopic(), 1, m.Bytes); ack.Code != p.Refusal(1) {
						g.Errorf("a bad signature: %v", ack)
					}
				}
				counted := time.Now()
				select {
				case <-c.Done():
				case <-time.After(time.Second):
					// The minute may have ended between two of them; the count then began again.
					if round == 1 && minute != counted.Unix()/60 {
						continue
					}
					g.Fatalf("the client is still connected a second after %d bad signatures", limit)
				}
				break
			}
			line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: disconnected for "))
			g.Must(err)
			if !strings.HasPrefix(harness.Fields(line)["client"], d.ID+"-") {
				g.Errorf("the log does not name the client: %s", line)
			}
			// The certificate alone is not enough to have the device itself disconnected.
			g.Accept(honest, 1, d.Sign("22"))
			g.Accept(neighbour, 1, neighbour.Sign("22"))
		})
	}
	g.NothingElse("neighbour")
	if n := g.Broker.Log().Count(0, broker.Contains("bouncer: disconnected ")); n != len(harness.BothProtocols) {
		g.Errorf("%d clients were disconnected, want %d", n, len(harness.BothProtocols))
	}
}

// TestNoTLSIdentity publishes faultless messages from clients that no certificate vouches for.
func TestNoTLSIdentity(t *testing.T) {
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, Conf: "allow_anonymous true", Listeners: harness.WithoutIdentity,
	})
	g.Watch()
	one, two, nobody := g.Device("sensor_001"), g.Device("sensor_002"), nameless(g)
	optional, unused := g.Broker.Address(1), g.Broker.Address(2)

	g.EachWay(func(g *harness.Gateway, p harness.Protocol, qos byte) {
		refuse := func(c *harness.Client) {
			g.Helper()
			g.Refuse(c, one.DataTopic(), qos, one.Sign("22"), "no_tls_identity")
		}
		refuse(g.ConnectAs(one.Anonymous().Via(optional), p, ""))
		refuse(g.ConnectAs(one.Anonymous().Via(optional), p, "sensor_001"))
		refuse(g.ConnectAs(two.Via(unused), p, "sensor_001"))
		refuse(g.ConnectAs(one.Via(unused), p, ""))
		if p == harness.MQTT311 {
			refuse(plain(g, "sensor_001"))
		}
		g.Refuse(g.Connect(nobody, p), "device//data", qos, one.Sign("22"), "no_tls_identity")
		// A certificate that has the name does vouch for it, however the broker learnt the name.
		g.Accept(g.ConnectAs(one.Via(unused), p, "sensor_001"), qos, one.Sign("22"))
	})
	g.NothingElse("sensor_001")
}

// nameless is a client whose certificate has an empty common name: the broker lets it in with an empty user name.
func nameless(g *harness.Gateway) *device.Device {
	g.Helper()
	caKey, err := g.Broker.CA().KeyPEM()
	g.Must(err)
	ca, err := tls.X509KeyPair(g.Broker.CA().CertPEM(), caKey)
	g.Must(err)
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	g.Must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.Must(err)
	emptyName := pkix.AttributeTypeAndValue{Type: []int{2, 5, 4, 3}, Value: ""}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{emptyName}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), ca.PrivateKey)
	g.Must(err)
	nobody := *g.Device("monitor")
	nobody.ID = ""
	nobody.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &nobody
}

// plain connects without TLS, by MQTT 3.1.1.
func plain(g *harness.Gateway, username string) *harness.Client {
	g.Helper()
	d := g.Device(username)
	c, err := d.ConnectV3(g.Limit(), func(o *mqtt.ClientOptions) {
		o.Servers = nil
		o.AddBroker("tcp://" + g.Broker.Address(3)).SetUsername(username)
	})
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() })
	return &harness.Client{Client: c, Device: d, Protocol: harness.MQTT311, Username: username}
}
