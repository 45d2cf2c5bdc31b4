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

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// named is a client whose certificate has this value as its common name, in the encoding that the value implies, and
// which has the secret of the device as it is told.
func (g *gate) named(value any, id string, secret []byte) *device.Device {
	g.Helper()
	caKey, err := g.broker.CA().KeyPEM()
	g.no(err)
	ca, err := tls.X509KeyPair(g.broker.CA().CertPEM(), caKey)
	g.no(err)
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	g.no(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.no(err)
	name := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: value}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{name}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), ca.PrivateKey)
	g.no(err)
	d := *g.device("monitor")
	d.ID, d.Secret, d.Certificate = id, secret, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &d
}

// TestCommonNames has certificates whose common names mean something to MQTT, or are written so that other bytes of them
// spell a device's. The database, made by the Python gateway, has them all as devices.
func TestCommonNames(t *testing.T) {
	bmp := func(text string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte(text)} }
	names := []string{"a/b", "+", "#", "sensor_001/data", "/", "$share", "sensor_001 ", "Sensor_001", "sensor_00\u0661"}
	g := newGate(t, broker.Options{Devices: []string{"sensor_001", "witness"}, PythonDatabase: true})
	g.watch()
	const secret = "known to every one of them"
	for _, name := range names {
		g.no(g.broker.SQL("INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, ?)", name, secret, time.Now().Unix()))
	}
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: skipped rows that are no devices", fmt.Sprintf("rows=%d ", len(names)-1)))
	g.no(err) // all but Sensor_001, which is one
	one := g.device("sensor_001")
	for _, name := range names {
		d := g.named(name, name, []byte(secret))
		for _, p := range bothProtocols {
			c := g.open(d, p, "client", true)
			refuse := func(topic string, m device.Message, reason string) {
				g.Helper()
				c.refuse(topic, packet{qos: 1, id: 1, Message: m}, reason)
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
	// To whoever issued this certificate it names 獥湳潲弰〱. The broker takes its bytes for a name.
	impostor := g.named(bmp("sensor_001"), "sensor_001", one.Secret)
	for _, p := range bothProtocols {
		m := one.Sign("22")
		g.refused = append(g.refused, delivery{m, one.DataTopic(), "under a name in another encoding"})
		mark := g.broker.Log().Mark()
		ack := g.open(impostor, p, "client", true).publish(one.DataTopic(), packet{qos: 1, id: 1, Message: m})
		if ack.Code != p.refusal(1) {
			g.Errorf("a name in another encoding: %v", ack)
			continue
		}
		line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: refused "))
		g.no(err)
		if fields(line)["reason"] != "no_tls_identity" {
			g.Errorf("a name in another encoding; the log says: %s", line)
		}
	}
	g.accept(g.connect(one, mqtt5), 1, one.Sign("22"))
	g.nothingElse("witness")
}

// TestTooManyBadSignatures has a client disconnected that does not have the secret, and no other.
func TestTooManyBadSignatures(t *testing.T) {
	const limit = 5
	ids := []string{"sensor_001", "sensor_002"}
	g := newGate(t, broker.Options{
		Devices: append(ids, "neighbour"), Settings: map[string]any{"publish.max_bad_signatures": limit},
	})
	g.watch()
	for i, p := range bothProtocols {
		g.sub(p.String(), func(g *gate) {
			d := g.device(ids[i])
			honest, neighbour := g.connect(d, p), g.connect(g.device("neighbour"), p)
			thief := *d // with the stolen certificate alone
			thief.Secret = []byte("guessed")
			c := g.connect(&thief, p)
			for range limit {
				g.refuse(c, d.DataTopic(), 1, device.Message{Bytes: []byte("22")}, "malformed") // does not count
			}
			mark := g.broker.Log().Mark()
			for round := 1; ; round++ {
				minute := time.Now().Unix() / 60
				for range limit {
					m := thief.Sign("22")
					g.refused = append(g.refused, delivery{m, d.DataTopic(), "by a thief"})
					if ack := g.publish(c, d.DataTopic(), 1, m.Bytes); ack.Code != p.refusal(1) {
						g.Errorf("a bad signature: %v", ack)
					}
				}
				counted := time.Now()
				select {
				case <-c.Done():
				case <-time.After(time.Second):
					// The minute may have ended between two of them; the count then began anew.
					if round == 1 && minute != counted.Unix()/60 {
						continue
					}
					g.Fatalf("the client is still connected a second after %d bad signatures", limit)
				}
				break
			}
			line, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: disconnected for "))
			g.no(err)
			if !strings.HasPrefix(fields(line)["client"], d.ID+"-") {
				g.Errorf("the log does not name the client: %s", line)
			}
			// The certificate alone is not enough to have the device itself disconnected.
			g.accept(honest, 1, d.Sign("22"))
			g.accept(neighbour, 1, neighbour.Sign("22"))
		})
	}
	g.nothingElse("neighbour")
	if n := g.broker.Log().Count(0, broker.Contains("bouncer: disconnected ")); n != len(bothProtocols) {
		g.Errorf("%d clients were disconnected, want %d", n, len(bothProtocols))
	}
}

// TestNoTLSIdentity publishes faultless messages from clients that no certificate vouches for.
func TestNoTLSIdentity(t *testing.T) {
	g := newGate(t, broker.Options{
		Devices: []string{"sensor_001", "sensor_002"}, Conf: "allow_anonymous true", Listeners: withoutIdentity,
	})
	g.watch()
	one, two, nobody := g.device("sensor_001"), g.device("sensor_002"), g.nameless()
	optional, unused := g.broker.Address(1), g.broker.Address(2)

	g.eachWay(func(g *gate, p protocol, qos byte) {
		refuse := func(c *client) {
			g.Helper()
			g.refuse(c, one.DataTopic(), qos, one.Sign("22"), "no_tls_identity")
		}
		refuse(g.connectAs(one.Anonymous().Via(optional), p, ""))
		refuse(g.connectAs(one.Anonymous().Via(optional), p, "sensor_001"))
		refuse(g.connectAs(two.Via(unused), p, "sensor_001"))
		refuse(g.connectAs(one.Via(unused), p, ""))
		if p == mqtt311 {
			refuse(g.plain("sensor_001"))
		}
		g.refuse(g.connect(nobody, p), "device//data", qos, one.Sign("22"), "no_tls_identity")
		// A certificate that bears the name does vouch for it, however the broker learnt the name.
		g.accept(g.connectAs(one.Via(unused), p, "sensor_001"), qos, one.Sign("22"))
	})
	g.nothingElse("sensor_001")
}

// nameless is a client whose certificate has an empty common name: the broker lets it in with an empty user name.
func (g *gate) nameless() *device.Device {
	g.Helper()
	caKey, err := g.broker.CA().KeyPEM()
	g.no(err)
	ca, err := tls.X509KeyPair(g.broker.CA().CertPEM(), caKey)
	g.no(err)
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	g.no(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.no(err)
	emptyName := pkix.AttributeTypeAndValue{Type: []int{2, 5, 4, 3}, Value: ""}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{emptyName}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), ca.PrivateKey)
	g.no(err)
	nobody := *g.device("monitor")
	nobody.ID = ""
	nobody.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &nobody
}

// plain connects without TLS, by MQTT 3.1.1.
func (g *gate) plain(username string) *client {
	g.Helper()
	d := g.device(username)
	c, err := d.ConnectV3(g.limit(), func(o *mqtt.ClientOptions) {
		o.Servers = nil
		o.AddBroker("tcp://" + g.broker.Address(3)).SetUsername(username)
	})
	g.no(err)
	g.Cleanup(func() { _ = c.Close() })
	return &client{Client: c, Device: d, protocol: mqtt311, username: username}
}
