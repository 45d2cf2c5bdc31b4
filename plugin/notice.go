package plugin

import (
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/gate"
)

// noticeEvery is the least time between two notices to one device.
const noticeEvery = time.Second

// notices tells devices why their publishes were refused. Broker's thread only, but for sent.
type notices struct {
	topic string // with config.DeviceID in it; "": none are told
	sent  atomic.Uint64
}

// notify tells a device that a publish was refused, if it wants to be told and was not within the last second. Only a
// device that is connected with its own certificate is told, and of what came over that very connection: nobody else can
// bring it about. A last will has no connection any more, and a refused subscription has its own answer.
func (g *Gateway) notify(p *gate.Publish, messageID []byte, reason gate.Reason, detail error) {
	if g.notices.topic == "" || !p.Certified || len(p.Identity) == 0 || detail == errWill || detail == errSubscription {
		return
	}
	d := g.devices.of(g.registry.Lookup(p.Identity))
	if d == nil || g.decision.now.Sub(d.noticed) < noticeEvery && !d.noticed.IsZero() {
		return
	}
	d.noticed = g.decision.now
	// Every part is safe in JSON: a reason is a word, a message id has been parsed.
	payload := []byte(`{"message_id":`)
	if messageID == nil {
		payload = append(payload, "null"...)
	} else {
		payload = append(append(append(payload, '"'), messageID...), '"')
	}
	payload = append(append(append(payload, `,"reason":"`...), reason.String()...), `","server_time":`...)
	payload = append(strconv.AppendInt(payload, g.decision.now.Unix(), 10), '}')
	// QoS 0: it is for a connection that is there, and worth nothing to a later one.
	err := g.host.Publish(downlink.Publish{Topic: strings.Replace(g.notices.topic, config.DeviceID, d.registered.ID, 1), Payload: payload})
	if err == nil {
		g.notices.sent.Add(1)
	}
}
