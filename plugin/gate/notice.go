package gate

import (
	"strconv"
	"time"

	"mosquitto-bouncer/plugin/mqtt"
)

// noticeEvery is the least time between two notices to one device.
const noticeEvery = time.Second

// notify sends a device a notice that a publish was refused, if notices are on and none was sent within the last second. Only
// a device that is connected with its own certificate gets one, and only about a publish on that connection, so no other
// client can cause it. A last will has no connection any more, and a refused subscription has its own answer.
func (g *Gate) notify(p *Publish, messageID []byte, reason Reason, detail error) {
	if g.topics.rejected == nil || !p.Certified || len(p.Identity) == 0 || detail == errWill || detail == errSubscription {
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
	// QoS 0: it is for the present connection, and of no use to a later one.
	err := g.broker.Publish(mqtt.Message{Topic: g.topics.rejected.Of(d.registered.ID), Payload: payload})
	if err == nil {
		g.figures.notices.Add(1)
	}
}
