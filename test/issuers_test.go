package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// An authority is a CA of the test's own.
type authority struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// authority makes a CA, by itself or under another.
func newAuthority(t *testing.T, name string, under *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	parent, signer := template, key
	if under != nil {
		parent, signer = under.Certificate, under.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{made, key}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw}))
}

// issue is a device with a certificate of this CA's, sent with the chain behind it.
func (a *authority) issue(g *harness.Gateway, d *device.Device, address string, chain ...*authority) *device.Device {
	g.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.Must(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: d.ID},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.Certificate, key.Public(), a.key)
	g.Must(err)
	with := *d.Via(address)
	with.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, c := range chain {
		with.Certificate.Certificate = append(with.Certificate.Certificate, c.Raw)
	}
	return &with
}

// partnerListener trusts another CA than the devices' listener.
const partnerListener = "cafile {dir}/partner.crt\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\n"

// TestIssuers: a certificate in a device's name counts only if a CA of [publish] issuers has signed it, also when another
// listener trusts another CA.
func TestIssuers(t *testing.T) {
	partner, namesake := newAuthority(t, "partner CA", nil), newAuthority(t, "partner CA", nil)
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001"}, Listeners: []string{partnerListener}, Settings: map[string]any{"publish.issuers": []string{"ca.crt"}},
		Files: map[string]string{"partner.crt": partner.pem() + namesake.pem()},
	})
	g.Watch()
	own := g.Device("sensor_001")
	const detail = "not signed by any of [publish] issuers"
	refused := func(by *device.Device, p harness.Protocol) {
		g.Helper()
		s := g.Subscriber(by, p, "client", true)
		s.Want(false, detail, own.ResponseTopic(), own.CommandTopic())
		mark := g.Broker.Log().Mark()
		if ack := s.Publish(own.DataTopic(), harness.Packet{QoS: 1, ID: 9, Message: own.Sign("22")}); ack.Code != p.Refusal(1) {
			g.Errorf("%v, by another CA: %v", p, ack)
		}
		_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("reason=no_tls_identity", detail))
		g.Must(err)
		if code := s.Unsubscribe(own.ResponseTopic()); p == harness.MQTT5 && code != device.NotAuthorized {
			g.Errorf("unsubscribes: 0x%02x", code)
		}
		s.Cut()
	}
	accepted := func(by *device.Device, p harness.Protocol) {
		g.Helper()
		s := g.Subscriber(by, p, "client", true)
		s.Want(true, "", own.ResponseTopic())
		m := harness.Packet{QoS: 1, ID: 9, Message: own.Sign("22")}
		s.Have(m)
		g.Posted(m.Message)
		s.Cut()
	}
	theirs, others := partner.issue(g, own, g.Broker.Address(1)), namesake.issue(g, own, g.Broker.Address(1))
	for _, p := range harness.BothProtocols {
		for range 2 { // the second time it is known
			accepted(own, p)
			refused(theirs, p)
		}
	}
	if n := g.Broker.Log().Count(0, broker.Contains("listeners trust different CAs")); n != 0 {
		g.Errorf("warns of different CAs though the issuers are set")
	}
	// Who is no device is not concerned.
	viewer := g.Subscriber(partner.issue(g, g.Device("viewer"), g.Broker.Address(1)), harness.MQTT5, "viewer", true)
	if code := viewer.Subscribe("device/+/data")[0]; code != 1 {
		g.Errorf("another client: 0x%02x", code)
	}
	// A reload puts other issuers in force, for connections that are open as well.
	open := g.Subscriber(own, harness.MQTT5, "open", true)
	open.Want(true, "", own.ResponseTopic())
	g.Must(g.Broker.WriteFile("issuers.crt", []byte(partner.pem())))
	g.Reload(map[string]any{"publish.issuers": []string{"issuers.crt"}})
	open.Want(false, detail, own.CommandTopic())
	refused(own, harness.MQTT5)
	accepted(theirs, harness.MQTT311)
	refused(others, harness.MQTT5) // of a CA of the same name
	g.Reload(map[string]any{"publish.issuers": []string{"ca.crt", "issuers.crt"}})
	accepted(own, harness.MQTT311)
	accepted(theirs, harness.MQTT5)
	// What cannot be read leaves those in force that were.
	g.Must(g.Broker.SetSettings(map[string]any{"publish.issuers": []string{"server.key"}}))
	mark := g.Broker.Log().Mark()
	g.Must(g.Broker.Process().Signal(syscall.SIGHUP))
	_, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer.toml was not reloaded"))
	g.Must(err)
	accepted(own, harness.MQTT5)
	refused(others, harness.MQTT311)
}

// TestIssuersIntermediate: where an intermediate CA signs the devices' certificates, it is the one to be named.
func TestIssuersIntermediate(t *testing.T) {
	root := newAuthority(t, "root", nil)
	between := newAuthority(t, "between", root)
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001"}, Listeners: []string{partnerListener}, Settings: map[string]any{"publish.issuers": []string{"between.crt"}},
		Files: map[string]string{"partner.crt": root.pem(), "between.crt": between.pem()},
	})
	own := g.Device("sensor_001")
	d := between.issue(g, own, g.Broker.Address(1), between)
	s := g.Subscriber(d, harness.MQTT5, "client", true)
	s.Want(true, "", own.ResponseTopic())
	m := harness.Packet{QoS: 1, ID: 9, Message: own.Sign("22")}
	s.Have(m)
	g.Posted(m.Message)
	g.Reload(map[string]any{"publish.issuers": []string{"partner.crt"}})
	s.Want(false, "if an intermediate CA signs the devices' certificates, name its certificate there", own.CommandTopic())
}

// TestDifferentAuthoritiesAreNamed: without issuers the start warns where listeners trust different CAs.
func TestDifferentAuthoritiesAreNamed(t *testing.T) {
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Listeners: []string{partnerListener},
		Files: map[string]string{"partner.crt": newAuthority(t, "partner CA", nil).pem()}})
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("bouncer: listeners trust different CAs", "set [publish] issuers", "partner.crt"))
	g.Must(err)
	same := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, Listeners: []string{harness.TLSListener}})
	if n := same.Broker.Log().Count(0, broker.Contains("listeners trust different CAs")); n != 0 {
		t.Error("warns where all listeners name the same file")
	}
}
