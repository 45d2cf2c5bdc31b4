package device

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// TestFinishedWhileDiskIsFull: a message that ends while the one after it cannot be written down has one outcome.
func TestFinishedWhileDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := t.TempDir()
		clock := time.Duration(0)
		b := &fakeBroker{}
		d := open(t, b, Options{State: state, NeverRepeat: true, Now: func() time.Time { return time.Now().Add(clock) }})
		b.reply = func(n int, p published) reply {
			switch n {
			case 1:
				b.setDown(true)
				return reply{cut: true}
			case 0:
				return reply{silent: true}
			}
			return reply{}
		}
		first := publish(t, d, "1")
		must(t, d.Start())
		time.Sleep(200 * time.Second)
		second := publish(t, d, "2") // its connection ends, and with it that of the first
		time.Sleep(90 * time.Second) // the first is too old now, the second is not
		temporary := filepath.Join(state, logName+".new")
		d.mu.Lock()
		must(t, d.store.log.close())
		d.mu.Unlock()
		must(t, os.Mkdir(temporary, 0o700))
		b.setDown(false)
		if o := outcome(t, first); o.Kind != Unknown {
			t.Errorf("%+v", o)
		}
		time.Sleep(10 * time.Second)
		must(t, os.Remove(temporary))
		if o := outcome(t, second); o.Kind != Accepted || o.Sent != 2 {
			t.Errorf("%+v", o)
		}
		must(t, d.Close())
	})
}

// TestNoticesBeforeSubscribing: notices that the broker has kept do not keep the device from subscribing.
func TestNoticesBeforeSubscribing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{suback: 0x01}
		b.subscribing = func(conn net.Conn) {
			for range 100 {
				b.publish(conn, "rejected", fmt.Sprintf(`{"message_id":null,"reason":"bad_signature","server_time":%d}`, time.Now().Unix()))
			}
		}
		d := open(t, b, Options{})
		must(t, d.Start())
		begin := time.Now()
		if o := outcome(t, publish(t, d, "1")); o.Kind != Accepted || time.Since(begin) > time.Second || b.conns != 1 {
			t.Errorf("%+v after %v, over connection %d", o, time.Since(begin), b.conns)
		}
		must(t, d.Close())
	})
}

// TestBrokerThatDoesNotRead: neither sending nor closing waits long for a broker that reads nothing.
func TestBrokerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{suback: 0x01}
		d := open(t, b, Options{})
		hung := make(chan struct{})
		defer close(hung)
		b.reply = func(n int, p published) reply {
			if n == 0 || n == 3 {
				<-hung
			}
			return reply{}
		}
		begin := time.Now()
		all := []*Delivery{publish(t, d, "1"), publish(t, d, "2")}
		must(t, d.Start())
		for _, delivery := range all {
			if o := outcome(t, delivery); o.Kind != Accepted {
				t.Errorf("%+v", o)
			}
		}
		if took := time.Since(begin); took > 3*keepAlive*time.Second {
			t.Errorf("sent after %v", took)
		}
		publish(t, d, "3")
		publish(t, d, "4")
		time.Sleep(time.Second)
		begin = time.Now()
		must(t, d.Close())
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

// TestOddPackets: whatever the broker sends, the device goes on, over another connection if need be.
func TestOddPackets(t *testing.T) {
	id := func(kind byte, id byte, more ...byte) []byte {
		return append([]byte{kind, byte(2 + len(more)), 0, id}, more...)
	}
	var many []byte
	for range 100 {
		many = append(many, id(0x40, 1)...)
	}
	for name, odd := range map[string][]byte{
		"PUBACK of nothing": id(0x40, 77), "PUBACK twice and more": many, "PUBACK of zero": id(0x40, 0), "PUBREC": id(0x50, 1), "PUBREL": id(0x62, 1),
		"PUBCOMP": id(0x70, 1), "SUBACK": id(0x90, 1, 0, 0x87), "SUBACK of nothing": id(0x90, 99, 0), "UNSUBACK": id(0xb0, 1, 0),
		"AUTH": {0xf0, 2, 0x18, 0}, "AUTH, success": {0xf0, 0}, "CONNACK": {0x20, 3, 0, 0, 0}, "DISCONNECT": {0xe0, 2, 0x8b, 0},
		"PINGRESP": {0xd0, 0}, "PINGREQ": {0xc0, 0}, "SUBSCRIBE": {0x82, 6, 0, 1, 0, 0, 0, 1}, "CONNECT": {0x10, 0}, "type 0": {0, 0},
		"PUBLISH, QoS 3": {0x36, 2, 0, 0}, "PUBLISH, QoS 2": {0x34, 8, 0, 1, 'x', 0, 9, 0, 1, 2}, "PUBLISH, empty": {0x30, 0},
		"PUBLISH, no topic": {0x30, 3, 0, 0, 0}, "an endless property": {0x30, 7, 0, 1, 'x', 0xff, 0xff, 0xff, 0x7f},
		"a length of five bytes": {0x30, 0xff, 0xff, 0xff, 0xff, 1}, "PUBACK, short": {0x40, 1, 0},
	} {
		for _, subscribing := range []bool{false, true} {
			t.Run(fmt.Sprint(name, subscribing), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &fakeBroker{suback: 0x01}
					send := func(conn net.Conn) {
						conn.(*lockedConn).Lock()
						defer conn.(*lockedConn).Unlock()
						_, _ = conn.Write(odd) // the device may be gone
					}
					var once sync.Once
					if subscribing {
						b.subscribing = func(conn net.Conn) { once.Do(func() { send(conn) }) }
					} else {
						b.reply = func(n int, p published) reply {
							if n == 0 {
								go send(b.conn)
							}
							return reply{}
						}
					}
					d := open(t, b, Options{})
					must(t, d.Start())
					for i := range 3 {
						begin := time.Now()
						if o := outcome(t, publish(t, d, fmt.Sprint(i))); o.Kind != Accepted || time.Since(begin) > 2*time.Minute {
							t.Errorf("%+v after %v", o, time.Since(begin))
						}
					}
					must(t, d.Close())
				})
			})
		}
	}
}

// TestNothingMayBeSent: a receive maximum of 0, which MQTT forbids, ends the connection and is reported.
func TestNothingMayBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{suback: 0x01}
		b.connack = func(c *packets.Connack) {
			if b.conns == 1 {
				c.Properties.ReceiveMaximum = new(uint16(0))
			}
		}
		d := open(t, b, Options{})
		var reported []error
		d.OnError = func(err error) { reported = append(reported, err) }
		must(t, d.Start())
		if o := outcome(t, publish(t, d, "1")); o.Kind != Accepted {
			t.Errorf("%+v", o)
		}
		must(t, d.Close())
		if err := errors.Join(reported...); err == nil || !strings.Contains(err.Error(), "receive maximum") {
			t.Errorf("reported: %v", err)
		}
	})
}

// TestTooLargeForTheNextBroker: what was in flight when the broker's limit became lower does not end each connection.
func TestTooLargeForTheNextBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{suback: 0x01}
		b.connack = func(c *packets.Connack) {
			if b.conns > 1 {
				c.Properties.MaximumPacketSize = new(uint32(1000))
			}
		}
		b.reply = func(n int, p published) reply { return reply{cut: len(p.text) > 900} } // as a broker does
		d := open(t, b, Options{})
		long, short := publish(t, d, `"`+strings.Repeat("x", 1000)+`"`), publish(t, d, "1")
		must(t, d.Start())
		if o := outcome(t, long); o.Kind != Refused || o.Reason != "mqtt 0x95" || o.Sent != 1 {
			t.Errorf("%+v", o)
		}
		if o := outcome(t, short); o.Kind != Accepted {
			t.Errorf("%+v", o)
		}
		must(t, d.Close())
	})
}
