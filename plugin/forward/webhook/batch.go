package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/cloudevent"
	"mosquitto-bouncer/plugin/forward"

	"github.com/go-json-experiment/json/jsontext"
)

// maxKeptBody is how much memory a courier keeps for the next body, in bytes.
const maxKeptBody = 512 << 10

// batchCourier is the courier over HTTP of batch mode.
type batchCourier struct {
	exchange
	body []byte
	keys hash.Hash // SHA-256
}

func (c *client) batchCourier() *batchCourier {
	b := &batchCourier{keys: sha256.New()}
	b.init(c, "application/cloudevents-batch+json")
	b.buf = b.target.Append(b.buf[:0], "")
	b.req.SetRequestURIBytes(b.buf)
	return b
}

// pack appends an event in the JSON format of CloudEvents, with the attributes that a message has when it is sent by itself:
//
//	{"specversion":"1.0","type":"mosquitto-bouncer.message.v1",
//	 "id":"550e8400-e29b-41d4-a716-446655440000","source":"/devices/sensor_001",
//	 "subject":"device/sensor_001/data","time":"2024-09-30T16:00:00Z",
//	 "traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
//	 "datacontenttype":"application/json","data":{"temperature":22.5}}
//
// The payload's bytes are those that were signed.
func (b *batchCourier) pack(m *forward.Message) {
	if len(b.body) == 0 {
		b.body = append(b.body, '[')
	} else {
		b.body = append(b.body, ',')
	}
	b.body = append(b.body, `{"specversion":"`+cloudevent.Spec+`","type":"`+cloudevent.Type+`","id":`...)
	b.body = quote(b.body, strings.ToLower(m.MessageID))
	b.body = append(b.body, `,"source":`...)
	b.buf = append(append(b.buf[:0], cloudevent.SourcePrefix...), m.DeviceID...)
	b.body = quote(b.body, b.buf)
	if m.Topic != "" && len(m.Topic) <= cloudevent.MaxSubject {
		b.body = append(b.body, `,"subject":`...)
		b.body = quote(b.body, m.Topic)
	}
	b.body = append(b.body, `,"time":"`...)
	b.body = time.Unix(m.Timestamp, 0).UTC().AppendFormat(b.body, time.RFC3339)
	if cloudevent.ValidTraceparent(m.Traceparent) {
		b.body = append(b.body, `","traceparent":`...)
		b.body = quote(b.body, m.Traceparent)
		b.body = append(b.body, `,"datacontenttype":"application/json","data":`...)
	} else {
		b.body = append(b.body, `","datacontenttype":"application/json","data":`...)
	}
	b.body = append(append(b.body, m.Payload...), '}')
	b.buf = append(cloudevent.AppendKey(b.buf[:0], m.DeviceID, m.MessageID), '\n')
	b.keys.Write(b.buf)
}

// quote appends s as a JSON string. What is not UTF-8 becomes U+FFFD, which is no error here.
func quote[T string | []byte](dst []byte, s T) []byte {
	dst, _ = jsontext.AppendQuote(dst, s)
	return dst
}

// send adds an Idempotency-Key that the same messages in the same order have at every attempt: the SHA-256, cut to 128
// bits, of the keys that they would have by themselves.
//
//	Idempotency-Key: "batch:0d6e4079e36703ebd37c00722f5891d2"
func (b *batchCourier) send() reply {
	b.body = append(b.body, ']')
	var sum [sha256.Size]byte
	b.buf = append(b.buf[:0], `"batch:`...)
	b.buf = append(hex.AppendEncode(b.buf, b.keys.Sum(sum[:0])[:16]), '"')
	b.req.Header.SetBytesV("Idempotency-Key", b.buf)

	r := b.do(b.body)
	r.unusable = "" // no device waits for it
	b.resp.Reset()
	b.keys.Reset()
	if b.body = b.body[:0]; cap(b.body) > maxKeptBody {
		b.body = nil
	}
	return r
}
