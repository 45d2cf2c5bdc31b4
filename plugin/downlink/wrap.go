package downlink

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// maxWrappedLength bounds a wrapped response, in bytes: a body that is no JSON may grow when it becomes a string.
const maxWrappedLength = 2 * MaxResponseLength

// wrap puts the body of a response between what names the message that it belongs to:
//
//	{"message_id":"550e8400-e29b-41d4-a716-446655440000","accepted_at":"2024-09-30T16:00:00Z","status":200,"body":{"ok":true}}
//
// A body that is one JSON value is there as it is, any other as a string, in which U+FFFD stands for what is not UTF-8.
func wrap(messageID string, accepted time.Time, status int, body []byte) []byte {
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
