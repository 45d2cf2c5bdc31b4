package deadletter

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxExcerpt is how much of a response a letter keeps, in bytes.
const MaxExcerpt = 1024

// maxText bounds the other texts that are not ours, in bytes: a topic is the longest of them.
const maxText = 65535

// A Letter is an accepted message that was given up, and why. Its texts are as the device or the backend wrote them:
// quote them before they reach a terminal.
type Letter struct {
	ID          int64     // given by the Store, ascending, never used twice
	Device      string    // its id
	MessageID   string    // UUID, in lower case
	Timestamp   int64     // the device's, Unix seconds
	AcceptedAt  time.Time // the first time, where a letter was requeued and died again
	DiedAt      time.Time
	Topic       string
	Traceparent string // "" if the publish carried none
	Payload     []byte // nil in what List yields; empty where the message could not be read any more
	Bytes       int64  // of the payload; Add ignores it

	Reason   string // stable; the forwarder's
	Status   int    // the backend's last, 0 if it sent none
	Excerpt  string // the beginning of the response's body, at most MaxExcerpt bytes of valid UTF-8
	Attempts int    // requests made since it was accepted or requeued, as far as the forwarder remembers
	Deaths   int    // how often it was stored: 1 unless requeued, or tried again after a crash; Add ignores it

	RequeuedAt time.Time // when an operator last asked for it; zero: never. Add ignores it
}

// A Filter selects letters: those for which every field that is set holds. The zero Filter selects all.
type Filter struct {
	IDs    []int64   // each must exist where letters are changed
	Device string    // its id
	Reason string    // exactly
	Since  time.Time // died then or later
}

// Totals is what there is.
type Totals struct {
	Letters  int64
	Bytes    int64 // of their payloads
	Requeued int64 // letters whose requeue was asked for and that the plugin has not taken
}

// prepare brings a letter into the form in which it is stored.
func (l *Letter) prepare() error {
	switch {
	case l.Device == "":
		return errors.New("dead letter without a device")
	case l.MessageID == "":
		return errors.New("dead letter without a message id")
	case l.Reason == "":
		return errors.New("dead letter without a reason")
	case l.AcceptedAt.IsZero() || l.DiedAt.IsZero():
		return errors.New("dead letter without its times")
	}
	l.MessageID = strings.ToLower(l.MessageID)
	l.Topic = bounded(l.Topic, maxText)
	l.Traceparent = bounded(l.Traceparent, maxText)
	l.Excerpt = bounded(l.Excerpt, MaxExcerpt)
	if l.Payload == nil {
		l.Payload = []byte{} // nil would be NULL
	}
	return nil
}

// bounded returns the first limit bytes of text, made valid UTF-8.
func bounded(text string, limit int) string {
	if len(text) > limit {
		end := limit
		for end > limit-utf8.UTFMax && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	if utf8.ValidString(text) {
		return text
	}
	if text = strings.ToValidUTF8(text, "\uFFFD"); len(text) > limit {
		return bounded(text, limit)
	}
	return text
}
