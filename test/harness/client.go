package harness

import (
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"mosquitto-bouncer/test/harness/device"
)

// TLSListener are the settings of a listener like the first one.
const TLSListener = "cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\n"

// WithoutIdentity are listeners that do not take the user name from a certificate; the first listener does.
var WithoutIdentity = []string{
	"cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate false",
	"cafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username false",
	"",
}

// A Client is a connection that knows its version and the user name that the broker sees.
type Client struct {
	device.Client
	*device.Device
	Protocol Protocol
	Username string
	Disabled bool // registered, and disabled
}

// Connect opens a connection of its own for a device, to the listener that takes the user name from the certificate. It
// is closed at the end of the (sub)test.
func (g *Gateway) Connect(d *device.Device, p Protocol) *Client {
	g.Helper()
	c := g.ConnectAs(d, p, "")
	c.Username = d.ID
	return c
}

// ConnectAs is connect with a user name of the client's choice, none when empty.
func (g *Gateway) ConnectAs(d *device.Device, p Protocol, username string) *Client {
	g.Helper()
	c := &Client{Device: d, Protocol: p, Username: username}
	var err error
	switch p {
	case MQTT5:
		c.Client, err = d.ConnectV5(g.Limit(), func(c *paho.Connect) { c.Username, c.UsernameFlag = username, username != "" })
	default:
		c.Client, err = d.ConnectV3(g.Limit(), func(o *mqtt.ClientOptions) { o.SetUsername(username) })
	}
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() }) // the broker may have gone first
	return c
}

// Watch connects the monitor: a client with a certificate of its own that subscribes to everything.
func (g *Gateway) Watch() {
	g.Helper()
	var err error
	g.Monitor, err = g.Device("monitor").ConnectV5(g.Limit())
	g.Must(err)
	g.Cleanup(func() { _ = g.Monitor.Close() })
	g.Must(g.Monitor.Subscribe(g.Limit(), "#", 2))
}

// Publish fails the test unless the broker answers, whatever it says.
func (g *Gateway) Publish(c *Client, topic string, qos byte, message []byte) device.Ack {
	g.Helper()
	ack, err := c.Publish(g.Limit(), topic, qos, false, message)
	if err != nil {
		g.Fatalf("QoS %d over %v: %v", qos, c.Protocol, err)
	}
	return ack
}

// LeaveSubscribed makes a session that lasts, and leaves it.
func (g *Gateway) LeaveSubscribed(id, filter string) {
	g.Helper()
	c := g.Resume(id)
	g.Must(c.Subscribe(g.Limit(), filter, 2))
	g.Must(c.Close())
}

// Resume continues with a session that lasts.
func (g *Gateway) Resume(id string) *device.V5 {
	g.Helper()
	c, err := g.Device(id).ConnectV5(g.Limit(), func(c *paho.Connect) {
		c.ClientID, c.CleanStart = id, false
		c.Properties = &paho.ConnectProperties{SessionExpiryInterval: new(uint32(3600))}
	})
	g.Must(err)
	g.Cleanup(func() { _ = c.Close() })
	return c
}

// Subscribe asks for a subscription and returns the broker's answer, 0x80 or above for a refusal.
func (g *Gateway) Subscribe(c *Client, filter string) byte {
	g.Helper()
	switch c := c.Client.(type) {
	case *device.V5:
		suback, err := c.Paho.Subscribe(g.Limit(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
		if suback == nil {
			g.Fatalf("subscribing to %q: %v", filter, err)
		}
		return suback.Reasons[0]
	case *device.V3:
		token := c.Paho.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
		select {
		case <-token.Done():
			for _, granted := range token.Result() { // the key of a shared one is without $share
				return granted
			}
		case <-g.Limit().Done():
			g.Fatalf("subscribing to %q: no answer", filter)
		}
	}
	panic("neither version of MQTT")
}
