package gate

import (
	"bytes"
	"crypto/rand"
	"time"

	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/subscription"
)

// Bounds of the questions about sessions.
const (
	maxSessionQuestions    = 1 << 16
	sessionQuestionsAtOnce = 32
	// sessionQuestionTicks is how many ticks after it was asked a question counts as answered. The broker sends what was
	// published in a tick before the next one.
	sessionQuestionTicks = 2
	// sessionQuestionEvery is after what time a session that still existed is asked about again.
	sessionQuestionEvery = 5 * time.Second
	// unaskedSessionAge is how long a session whose client is away counts where the broker cannot be asked.
	unaskedSessionAge = time.Hour
)

// sessionQuestions finds out whether sessions whose client is away have ended. The broker tells no plugin when a session
// expires, and before Mosquitto 2.1 not even whether an MQTT 5 session ended with its connection. So sessionQuestions publishes
// a message that no client may read to a topic to which the session is subscribed. For each session that still exists, the
// broker then asks whether it may deliver the message. Where this is not possible, a session whose client is away counts for
// some time and is then forgotten. Broker's thread only.
type sessionQuestions struct {
	table   *subscription.Table
	message []byte                           // 16 random bytes, so that no client publishes them; memory of its own, which C may be given
	waiting []sessionQuestion                // to be asked or answered
	later   []sessionQuestion                // the earliest first
	listed  map[subscription.SessionKey]bool // true: in waiting; false: only in later
	unasked bool                             // the broker cannot be asked
}

// A sessionQuestion is one of them.
type sessionQuestion struct {
	session subscription.SessionKey
	asked   uint64    // the tick; 0: not yet
	due     time.Time // when it is asked about again, or forgotten
}

func newSessionQuestions(table *subscription.Table) *sessionQuestions {
	q := &sessionQuestions{table: table, message: make([]byte, 16), listed: make(map[subscription.SessionKey]bool)}
	rand.Read(q.message) // never fails
	return q
}

// add notes a session to be asked about: now, if it may have ended with its connection, and from time to time. When there is
// no room for it, the session counts as existing until its device asks for room again.
func (q *sessionQuestions) add(session subscription.SessionKey, end subscription.End) {
	waiting, listed := q.listed[session]
	now := !q.unasked && end == subscription.MayStay
	switch {
	case waiting, listed && !now, !listed && len(q.listed) >= maxSessionQuestions:
	case now:
		q.listed[session] = true
		q.waiting = append(q.waiting, sessionQuestion{session: session})
	default:
		q.postpone(session, time.Now())
	}
}

func (q *sessionQuestions) postpone(session subscription.SessionKey, now time.Time) {
	after := sessionQuestionEvery
	if q.unasked {
		after = unaskedSessionAge
	}
	if len(q.later) >= maxSessionQuestions {
		delete(q.listed, session)
		return
	}
	q.listed[session] = false
	q.later = append(q.later, sessionQuestion{session: session, due: now.Add(after)})
}

// askOf notes all sessions of a device whose client is away, to be asked about now.
func (q *sessionQuestions) askOf(device []byte) {
	for _, session := range q.table.Away(device) {
		if !q.listed[session] { // not waiting
			q.table.Doubt(session)
			q.add(session, subscription.MayStay)
		}
	}
}

// forget forgets the sessions whose client has been away for long, where the broker cannot be asked. It reports whether there
// were any.
func (q *sessionQuestions) forget(now time.Time) (any bool) {
	for q.unasked && len(q.later) > 0 && !now.Before(q.later[0].due) {
		session := q.later[0].session
		q.later = q.later[1:]
		if q.table.Doubt(session) {
			q.table.Gone(session)
			any = true
		}
		delete(q.listed, session)
	}
	return any
}

// tick evaluates the answered questions and asks more. publish hands a message to the broker.
func (q *sessionQuestions) tick(tick uint64, publish func(mqtt.Message) error) {
	if len(q.waiting)+len(q.later) == 0 {
		return
	}
	now := time.Now()
	q.forget(now)
	for !q.unasked && len(q.later) > 0 && !now.Before(q.later[0].due) && len(q.waiting) < 2*sessionQuestionsAtOnce {
		session := q.later[0].session
		q.later = q.later[1:]
		if waiting, listed := q.listed[session]; listed && !waiting {
			q.table.Doubt(session)
			q.listed[session] = true
			q.waiting = append(q.waiting, sessionQuestion{session: session})
		}
	}
	kept := q.waiting[:0]
	asked := 0
	for _, s := range q.waiting {
		topic, away := q.table.Doubtful(s.session)
		switch {
		case !away: // its client is back, or it has ended
			delete(q.listed, s.session)
			continue
		case topic == "":
			q.postpone(s.session, now)
			continue
		case s.asked > 0 && tick >= s.asked+sessionQuestionTicks:
			q.table.Gone(s.session)
			delete(q.listed, s.session)
			continue
		case s.asked == 0 && asked < sessionQuestionsAtOnce:
			asked++
			if publish(mqtt.Message{Topic: topic, Payload: q.message}) != nil {
				q.postpone(s.session, now)
				continue
			}
			s.asked = tick
		}
		kept = append(kept, s)
	}
	clear(q.waiting[len(kept):])
	q.waiting = kept
}

// answers reports whether a delivery is the answer to a question, whose message no client may read, and takes note of it.
func (q *sessionQuestions) answers(p *Publish) bool {
	if !bytes.Equal(p.Payload, q.message) {
		return false
	}
	q.table.Stays(p.Identity, p.ClientID)
	q.table.Stays(uncertified(p.Identity), p.ClientID)
	return true
}
