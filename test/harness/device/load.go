package device

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/envelope"
)

const (
	// batchBytes ends a batch of publishes: about one TLS record.
	batchBytes = 16 << 10
	// drainTimeout bounds the wait for the last acknowledgements.
	drainTimeout = 10 * time.Second
	// pubackBytes is less than a PUBACK takes in a TLS record of its own.
	pubackBytes = 24
)

// Load is a stream of signed publishes over MQTT 5 with QoS 1: every device has one connection and keeps a window of
// publishes unacknowledged.
type Load struct {
	Devices []*Device // one connection each
	Window  int       // publishes in flight a connection, 1 to 60000
	// Duration is how long to publish, once all are connected.
	Duration time.Duration
	// Rate limits the publishes of all connections together, in messages a second; 0: as fast as they go.
	Rate float64
	// Burst is how many publishes a connection writes at once, or at least so many without Rate, and how many
	// acknowledgements it waits for at once: 2 to half of Window. It makes the load as good as a remote one, whatever
	// the broker's pace: a client on the same machine that takes every acknowledgement by itself has to be woken for
	// each, at the broker's expense. 0: 1, and acknowledgements as they come.
	Burst int
	// Payload is the JSON value that each envelope carries.
	Payload []byte
	// Topic is what all publish to; empty: each device's gated topic.
	Topic string
}

// Report is the outcome of a load.
type Report struct {
	Elapsed  time.Duration // from the first publish to the last acknowledgement
	Sent     int
	Accepted int
	Refused  int // acknowledged with a reason code of failure
	// Latencies are the times from a PUBLISH to its PUBACK, in ascending order.
	Latencies []time.Duration
}

// PerSecond is the number of accepted publishes a second.
func (r *Report) PerSecond() float64 { return float64(r.Accepted) / r.Elapsed.Seconds() }

// Percentile is the latency that p percent of the publishes did not exceed, 0 when there was none.
func (r *Report) Percentile(p float64) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	return r.Latencies[min(int(float64(len(r.Latencies))*p/100), len(r.Latencies)-1)]
}

// Run publishes for the duration, or until ctx is done, then waits for what is still unacknowledged, 10 s at most. When
// a connection fails the others are ended too, and the error tells which it was; the report holds what was done until
// then.
func (l Load) Run(ctx context.Context) (*Report, error) {
	if l.Window < 1 || l.Window > 60000 {
		return nil, fmt.Errorf("load: a window of %d; it must be 1 to 60000", l.Window)
	}
	l.Burst = max(l.Burst, 1)
	if l.Burst > 1 && l.Burst > l.Window/2 {
		return nil, fmt.Errorf("load: bursts of %d in a window of %d; they must be at most half of it", l.Burst, l.Window)
	}
	if len(l.Devices) == 0 {
		return nil, errors.New("load: no devices")
	}
	var limit *rate.Limiter
	if l.Rate > 0 {
		limit = rate.NewLimiter(rate.Limit(l.Rate), l.Burst)
	}
	begin := time.Now()
	streams := make([]*stream, len(l.Devices))
	for i, d := range l.Devices {
		conn, _, err := d.ConnectRaw5(ctx, func(c *packets5.Connect) { c.KeepAlive = 0 })
		if err == nil {
			err = conn.Conn.SetDeadline(time.Time{}) // connecting has left one
		}
		if err == nil && l.Burst > 1 {
			err = wakeAt(conn.Conn, l.Burst*pubackBytes)
		}
		if err != nil {
			for _, s := range streams[:i] {
				s.conn.Close()
			}
			return nil, err
		}
		streams[i] = newStream(d, conn, l, limit, begin)
	}
	ctx, cancel := context.WithTimeout(ctx, l.Duration)
	defer cancel()
	publishing := time.Now()
	failures := make([]error, len(streams))
	var all sync.WaitGroup
	for i, s := range streams {
		all.Go(func() {
			if failures[i] = s.run(ctx); failures[i] != nil {
				cancel()
			}
		})
	}
	all.Wait()
	report := &Report{Elapsed: time.Since(publishing)}
	for _, s := range streams {
		report.Sent += s.sent
		report.Accepted += s.accepted
		report.Refused += s.refused
		report.Latencies = append(report.Latencies, s.latencies...)
	}
	slices.Sort(report.Latencies)
	return report, errors.Join(failures...)
}

// stream is one connection of a load. One goroutine writes, another reads the acknowledgements.
type stream struct {
	device *Device
	conn   net.Conn
	r      *bufio.Reader
	load   Load
	limit  *rate.Limiter
	begin  time.Time
	// free holds the packet ids that are not in flight; taking one is the right to publish.
	free   chan uint16
	sentAt []atomic.Int64 // by packet id, nanoseconds since begin

	sent      int             // the writer's
	accepted  int             // the reader's
	refused   int             // the reader's
	latencies []time.Duration // the reader's
}

func newStream(d *Device, c *Raw5, l Load, limit *rate.Limiter, begin time.Time) *stream {
	s := &stream{
		device: d, conn: c.Conn, r: c.r, load: l, limit: limit, begin: begin,
		free: make(chan uint16, l.Window), sentAt: make([]atomic.Int64, l.Window+1),
	}
	for id := range l.Window {
		s.free <- uint16(id + 1)
	}
	return s
}

func (s *stream) run(ctx context.Context) error {
	failed := make(chan error, 1) // the reader's end
	go func() {
		err := s.read()
		s.conn.Close() // the writer may be blocked
		failed <- err
	}()
	err := s.write(ctx, failed)
	if closing := s.conn.Close(); err == nil && closing == nil {
		<-failed
		return nil
	}
	if reading := <-failed; reading != nil && !errors.Is(reading, net.ErrClosed) {
		err = reading // what broke the connection, where err is only that it is broken
	}
	if err != nil {
		return fmt.Errorf("load: %s: %w", s.device.ID, err)
	}
	return nil
}

// write publishes until ctx is done and returns when all is acknowledged.
func (s *stream) write(ctx context.Context, failed chan error) error {
	// Ids need only be unique and cheap: random once, then counted.
	id := uuid.New()
	counter := binary.BigEndian.Uint64(id[8:])
	topic := s.load.Topic
	if topic == "" {
		topic = s.device.DataTopic()
	}
	buffer := make([]byte, 0, 2*batchBytes)
	batch := make([]uint16, 0, s.load.Window)
	for {
		buffer, batch = buffer[:0], batch[:0]
		for want := s.load.Burst; len(batch) < want; {
			select {
			case packetID := <-s.free:
				batch = append(batch, packetID)
			case err := <-failed:
				failed <- err
				return err
			case <-ctx.Done():
				return s.drain(len(batch), failed)
			}
		}
		if s.limit != nil && s.limit.WaitN(ctx, len(batch)) != nil {
			return s.drain(len(batch), failed)
		}
		for n := 0; n < len(batch); n++ {
			counter++
			binary.BigEndian.PutUint64(id[8:], counter)
			signed, err := envelope.Sign(envelope.NewSigner(s.device.Secret), s.device.ID, time.Now().Unix(), id.String(), s.load.Payload)
			if err != nil {
				return err
			}
			buffer = appendPublish(buffer, topic, batch[n], signed)
			if s.limit != nil || len(buffer) >= batchBytes {
				continue
			}
			select {
			case packetID := <-s.free:
				batch = append(batch, packetID)
			default:
			}
		}
		now := time.Since(s.begin).Nanoseconds()
		for _, packetID := range batch {
			s.sentAt[packetID].Store(now)
		}
		if _, err := s.conn.Write(buffer); err != nil {
			return err
		}
		s.sent += len(batch)
	}
}

// wakeAt has the reader of a connection wait until so many bytes have come.
func wakeAt(conn net.Conn, bytes int) error {
	tcp, err := conn.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var setting error
	err = tcp.Control(func(fd uintptr) {
		setting = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes)
	})
	return errors.Join(err, setting)
}

// drain waits until every packet id but those in hand is free again: all is acknowledged.
func (s *stream) drain(inHand int, failed chan error) error {
	if s.load.Burst > 1 {
		if err := wakeAt(s.conn, 1); err != nil {
			return err
		}
	}
	late := time.After(drainTimeout)
	for n := inHand; n < s.load.Window; n++ {
		select {
		case <-s.free:
		case err := <-failed:
			failed <- err
			return err
		case <-late:
			return fmt.Errorf("%d publishes were not acknowledged within %v", s.load.Window-n, drainTimeout)
		}
	}
	return nil
}

// read takes the acknowledgements until the connection ends.
func (s *stream) read() error {
	for {
		kind, body, err := s.next()
		if err != nil {
			return err
		}
		switch kind >> 4 {
		case packets5.PUBACK:
			if len(body) < 2 {
				return fmt.Errorf("a PUBACK of %d bytes", len(body))
			}
			packetID := binary.BigEndian.Uint16(body)
			if int(packetID) >= len(s.sentAt) || packetID == 0 {
				return fmt.Errorf("a PUBACK for packet id %d, which was not sent", packetID)
			}
			// A PUBACK without reason code means success (MQTT 5, 3.4.2.1).
			if len(body) > 2 && body[2] >= 0x80 {
				s.refused++
			} else {
				s.accepted++
			}
			s.latencies = append(s.latencies, time.Since(s.begin)-time.Duration(s.sentAt[packetID].Load()))
			s.free <- packetID
		case packets5.DISCONNECT:
			if len(body) > 0 {
				return fmt.Errorf("the broker disconnected with reason 0x%02x", body[0])
			}
			return errors.New("the broker disconnected")
		}
	}
}

// next reads one packet; the body is valid until the next call.
func (s *stream) next() (kind byte, body []byte, err error) {
	if kind, err = s.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	length, err := binary.ReadUvarint(s.r) // MQTT's variable byte integer is little-endian base 128 too
	if err != nil {
		return 0, nil, err
	}
	if length > uint64(s.r.Size()) {
		return 0, nil, fmt.Errorf("a packet of %d bytes: no answer to a publish is that long", length)
	}
	if body, err = s.r.Peek(int(length)); err != nil {
		return 0, nil, err
	}
	_, err = s.r.Discard(int(length))
	return kind, body, err
}

// appendPublish appends a PUBLISH with QoS 1 and no properties (MQTT 5, 3.3).
func appendPublish(b []byte, topic string, packetID uint16, payload []byte) []byte {
	b = append(b, packets5.PUBLISH<<4|1<<1)
	b = binary.AppendUvarint(b, uint64(2+len(topic)+2+1+len(payload)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(topic)))
	b = append(b, topic...)
	b = binary.BigEndian.AppendUint16(b, packetID)
	b = append(b, 0) // properties
	return append(b, payload...)
}
