package plugin

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// maxWrappedLength bounds a wrapped answer, in bytes: one that is no JSON may grow when it becomes a string.
const maxWrappedLength = 2 * maxAnswerLength

// answerRules say which answers of the backend reach a device, and in which form.
type answerRules struct {
	maxAge time.Duration // since the message was first accepted, before any requeue
	wrap   bool
}

// tooOld reports whether the answer to a message comes too late for its device.
func (r answerRules) tooOld(accepted, now time.Time) bool { return now.Sub(accepted) > r.maxAge }

// wrapAnswer puts a body between what tells the device to which of its messages it belongs:
//
//	{"message_id":"550e8400-e29b-41d4-a716-446655440000","accepted_at":"2024-09-30T16:00:00Z","status":200,"body":{"ok":true}}
//
// A body that is one JSON value is there as it is, any other as a string, in which U+FFFD stands for what is not UTF-8.
func wrapAnswer(messageID string, accepted time.Time, status int, body []byte) []byte {
	b := make([]byte, 0, len(body)+160)
	b = append(b, `{"message_id":`...)
	b, _ = jsontext.AppendQuote(b, messageID)
	b = append(b, `,"accepted_at":"`...)
	b = accepted.UTC().Truncate(time.Second).AppendFormat(b, time.RFC3339)
	b = append(b, `","status":`...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, `,"body":`...)
	if jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true)) {
		b = append(b, body...)
	} else {
		b, _ = jsontext.AppendQuote(b, string(body)) // what is not UTF-8 is no error here
	}
	return append(b, '}')
}
