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
func (a *authority) issue(g *gate, d *device.Device, address string, chain ...*authority) *device.Device {
	g.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.no(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: d.ID},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.Certificate, key.Public(), a.key)
	g.no(err)
	with := *d.Via(address)
	with.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, c := range chain {
		with.Certificate.Certificate = append(with.Certificate.Certificate, c.Raw)
	}
	return &with
}

// partnerListener trusts another CA than the devices' listener.
const partnerListener = "cafile {dir}/partner.crt\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\n"

// reload sends SIGHUP and waits until bouncer.toml has been read.
func (g *gate) reload(settings map[string]any) {
	g.Helper()
	g.no(g.broker.SetSettings(settings))
	mark := g.broker.Log().Mark()
	g.no(g.broker.Process().Signal(syscall.SIGHUP))
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer: bouncer.toml was reloaded"))
	g.no(err)
}

// TestIssuers: a certificate in a device's name counts only if a CA of [publish] issuers has signed it, also when another
// listener trusts another CA.
func TestIssuers(t *testing.T) {
	partner, namesake := newAuthority(t, "partner CA", nil), newAuthority(t, "partner CA", nil)
	g := newGateWith(t, broker.Options{
		Devices: []string{"sensor_001"}, Listeners: []string{partnerListener}, Settings: map[string]any{"publish.issuers": []string{"ca.crt"}},
	}, map[string]string{"partner.crt": partner.pem() + namesake.pem()})
	g.watch()
	own := g.device("sensor_001")
	const detail = "signed by none of [publish] issuers"
	refused := func(by *device.Device, p protocol) {
		g.Helper()
		s := g.subscriber(by, p, "client", true)
		s.want(false, detail, own.ResponseTopic(), own.CommandTopic())
		mark := g.broker.Log().Mark()
		if ack := s.publish(own.DataTopic(), packet{qos: 1, id: 9, Message: own.Sign("22")}); ack.Code != p.refusal(1) {
			g.Errorf("%v, by another CA: %v", p, ack)
		}
		_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("reason=no_tls_identity", detail))
		g.no(err)
		if code := s.unsubscribe(own.ResponseTopic()); p == mqtt5 && code != device.NotAuthorized {
			g.Errorf("unsubscribes: 0x%02x", code)
		}
		s.cut()
	}
	accepted := func(by *device.Device, p protocol) {
		g.Helper()
		s := g.subscriber(by, p, "client", true)
		s.want(true, "", own.ResponseTopic())
		m := packet{qos: 1, id: 9, Message: own.Sign("22")}
		s.have(m)
		g.posted(m.Message)
		s.cut()
	}
	theirs, others := partner.issue(g, own, g.broker.Address(1)), namesake.issue(g, own, g.broker.Address(1))
	for _, p := range bothProtocols {
		for range 2 { // the second time it is known
			accepted(own, p)
			refused(theirs, p)
		}
	}
	if n := g.broker.Log().Count(0, broker.Contains("listeners trust different CAs")); n != 0 {
		g.Errorf("warns of different CAs though the issuers are set")
	}
	// Who is no device is not concerned.
	viewer := g.subscriber(partner.issue(g, g.device("viewer"), g.broker.Address(1)), mqtt5, "viewer", true)
	if code := viewer.subscribe("device/+/data")[0]; code != 1 {
		g.Errorf("another client: 0x%02x", code)
	}
	// A reload puts other issuers in force, for connections that are open as well.
	open := g.subscriber(own, mqtt5, "open", true)
	open.want(true, "", own.ResponseTopic())
	g.no(g.broker.WriteFile("issuers.crt", []byte(partner.pem())))
	g.reload(map[string]any{"publish.issuers": []string{"issuers.crt"}})
	open.want(false, detail, own.CommandTopic())
	refused(own, mqtt5)
	accepted(theirs, mqtt311)
	refused(others, mqtt5) // of a CA of the same name
	g.reload(map[string]any{"publish.issuers": []string{"ca.crt", "issuers.crt"}})
	accepted(own, mqtt311)
	accepted(theirs, mqtt5)
	// What cannot be read leaves those in force that were.
	g.no(g.broker.SetSettings(map[string]any{"publish.issuers": []string{"server.key"}}))
	mark := g.broker.Log().Mark()
	g.no(g.broker.Process().Signal(syscall.SIGHUP))
	_, err := g.broker.WaitLog(g.limit(), mark, broker.Contains("bouncer.toml was not reloaded"))
	g.no(err)
	accepted(own, mqtt5)
	refused(others, mqtt311)
}

// TestIssuersIntermediate: where an intermediate CA signs the devices' certificates, it is the one to be named.
func TestIssuersIntermediate(t *testing.T) {
	root := newAuthority(t, "root", nil)
	between := newAuthority(t, "between", root)
	g := newGateWith(t, broker.Options{
		Devices: []string{"sensor_001"}, Listeners: []string{partnerListener}, Settings: map[string]any{"publish.issuers": []string{"between.crt"}},
	}, map[string]string{"partner.crt": root.pem(), "between.crt": between.pem()})
	own := g.device("sensor_001")
	d := between.issue(g, own, g.broker.Address(1), between)
	s := g.subscriber(d, mqtt5, "client", true)
	s.want(true, "", own.ResponseTopic())
	m := packet{qos: 1, id: 9, Message: own.Sign("22")}
	s.have(m)
	g.posted(m.Message)
	g.reload(map[string]any{"publish.issuers": []string{"partner.crt"}})
	s.want(false, "if an intermediate CA signs the devices' certificates, name its certificate there", own.CommandTopic())
}

// TestDifferentAuthoritiesAreNamed: without issuers the start warns where listeners trust different CAs.
func TestDifferentAuthoritiesAreNamed(t *testing.T) {
	g := newGateWith(t, broker.Options{Devices: []string{"sensor_001"}, Listeners: []string{partnerListener}},
		map[string]string{"partner.crt": newAuthority(t, "partner CA", nil).pem()})
	_, err := g.broker.WaitLog(g.limit(), 0, broker.Contains("bouncer: listeners trust different CAs", "set [publish] issuers", "partner.crt"))
	g.no(err)
	same := newGate(t, broker.Options{Devices: []string{"sensor_001"}, Listeners: []string{tlsListener}})
	if n := same.broker.Log().Count(0, broker.Contains("listeners trust different CAs")); n != 0 {
		t.Error("warns where all listeners name the same file")
	}
}
