package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// fill sends what may be sent now. The error is the connection's.
func (s *exchange) fill(ctx context.Context) error {
	for {
		batch := s.choose(time.Now())
		if len(batch) == 0 {
			return nil
		}
		ready, ok := s.prepare(batch)
		s.flush()
		if !ok {
			s.stuck = time.Now().Add(retryWait)
			return nil
		}
		for _, m := range ready {
			text := assemble(s.d.config.DeviceID, m.at, m.id, m.payload, m.signature)
			packet, err := s.conn.publish(ctx, m.topic, text)
			if packet == 0 {
				m.uncertain = true // the disk says so, too
				if err == nil {
					err = errors.New("a message has no packet id")
				}
				return err
			}
			s.setPhase(m, inFlight)
			m.packet, m.began = packet, time.Now()
			s.sent[packet] = m
			if err != nil {
				return err
			}
		}
	}
}

// choose returns the messages to send now, in order.
func (s *exchange) choose(now time.Time) []*message {
	if s.stuck.After(now) {
		return nil
	}
	// While one is held nothing else is sent, and the oldest first.
	var held *message
	free := s.conn.window
	for _, m := range s.active {
		if m.phase != waiting {
			free--
		}
		if m.held && (held == nil || m.number < held.number) {
			held = m
		}
	}
	if held != nil {
		if free < s.conn.window || held.due.After(now) {
			return nil // something is in flight, maybe itself
		}
		return []*message{held}
	}
	if len(s.again) > 0 {
		n := max(0, min(free, len(s.again)))
		batch := s.again[:n:n]
		s.again = s.again[n:]
		return batch
	}
	var batch []*message
	waits := 0
	for _, m := range s.active {
		if m.phase != waiting {
			continue
		}
		waits++
		if !m.due.After(now) {
			batch = append(batch, m)
		}
	}
	if len(batch) > 0 {
		slices.SortFunc(batch, func(a, b *message) int { return cmp.Compare(a.number, b.number) })
		return batch[:max(0, min(free, len(batch)))]
	}
	free -= waits // each has a place in the window
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, m := range s.d.store.queue {
		if len(batch) >= free {
			break
		}
		if m.phase == idle {
			batch = append(batch, m)
		}
	}
	return batch
}

// prepare signs what has to be signed, and writes it to the disk. It returns the messages that are to be sent, without those
// that have their outcome; false: nothing can be sent now.
func (s *exchange) prepare(batch []*message) (ready []*message, ok bool) {
	d := s.d
	d.mu.Lock()
	now := d.now()
	d.mu.Unlock()
	oldest := now - int64(max(d.options.Tolerance-toleranceMargin, 0)/time.Second)
	var signed []record
	var again []uint64
	for _, m := range batch {
		if s.conn.largest > 0 && uint32(messageLen(d.config.DeviceID, now, len(m.payload), d.config.Credential.signature)+len(m.topic)+16) > s.conn.largest {
			s.finish(m, Refused, mqttReason(packetTooLarge)) // sent, it would end each connection
			continue
		}
		tooOld := m.id != "" && m.at < oldest
		if m.id != "" && !tooOld && !m.resign {
			again = append(again, m.number)
			ready = append(ready, m)
			continue
		}
		if m.uncertain && d.options.NeverRepeat {
			s.finish(m, Unknown, "")
			continue
		}
		r, err := d.sign(m, now)
		if ReasonOf(err) != "" {
			s.finish(m, Refused, string(ReasonOf(err)))
			continue
		}
		if err != nil {
			d.report(err)
			s.giveBack(batch)
			return nil, false
		}
		signed = append(signed, r)
		ready = append(ready, m)
	}
	if len(ready) == 0 {
		return nil, true
	}
	records := signed
	if len(again) > 0 {
		records = append(records, record{Op: opSent, Numbers: again})
	}
	d.mu.Lock()
	err := d.store.write(len(signed) > 0, records...)
	d.mu.Unlock()
	if err != nil {
		d.report(fmt.Errorf("nothing is sent: %w", err))
		s.giveBack(batch)
		return nil, false
	}
	for _, m := range ready {
		m.resign, m.notice = false, nil
	}
	return ready, true
}

// giveBack has what was to be sent again first be so still, but for what has its outcome.
func (s *exchange) giveBack(batch []*message) {
	var again []*message
	for _, m := range batch {
		finished := slices.ContainsFunc(s.done, func(f finished) bool { return f.m == m })
		if m.phase == idle && m.uncertain && !finished {
			again = append(again, m)
		}
	}
	s.again = append(again, s.again...)
}

// sign signs a message, with a new id.
func (d *Device) sign(m *message, now int64) (record, error) {
	id := uuid.NewString()
	text, err := Sign(d.config.Credential, Message{
		DeviceID: d.config.DeviceID, Timestamp: now, MessageID: id, Payload: m.payload, MaxBytes: d.options.MaxMessageBytes,
	})
	if err != nil {
		return record{}, err
	}
	text = text[:len(text)-len(`"}`)]
	signature := text[len(text)-2*d.config.Credential.signature:]
	return record{Op: opSign, Number: m.number, ID: id, At: now, Signature: string(signature), Repeated: m.repeated || m.uncertain}, nil
}
