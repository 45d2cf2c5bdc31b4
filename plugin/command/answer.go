package command

import (
	"bytes"
	"errors"
)

// An answer is what a device says of a command: the payload of its signed message.
//
//	{"command_id":"<a command's id>","status":"succeeded"|"failed"|"rejected","result":<any value, or nothing>}
type answer struct {
	ID     string
	Status State
	Result []byte // a JSON value; nil: none
}

// The errors of CheckAnswer.
var (
	errNotAnswer    = errors.New("not an answer to a command: it must be an object of command_id, status and, if any, result")
	errAnswerID     = errors.New("not an answer to a command: command_id is not the id of a command")
	errAnswerStatus = errors.New("not an answer to a command: status is not succeeded, failed or rejected")
)

// CheckAnswer reports whether the payload of a device's message is an answer to a command, whatever command that is. The
// payload must be valid JSON whose objects have no member name twice, which the envelope's parser sees to. It takes time
// in proportion to the payload, and no memory.
func CheckAnswer(payload []byte) error {
	id, status, _, err := readAnswer(payload)
	switch {
	case err != nil:
		return err
	case !validIDText(id):
		return errAnswerID
	case !State(status).answer():
		return errAnswerStatus
	}
	return nil
}

// parseAnswer reads an answer.
func parseAnswer(payload []byte) (answer, error) {
	if err := CheckAnswer(payload); err != nil {
		return answer{}, err
	}
	id, status, result, err := readAnswer(payload)
	return answer{ID: string(id), Status: State(status), Result: bytes.Clone(result)}, err
}

// readAnswer returns the text of an answer's strings, which are written without escapes, and its result.
func readAnswer(payload []byte) (id, status, result []byte, err error) {
	rest, ok := bytes.CutPrefix(trimSpace(payload), []byte("{"))
	for first := true; ok; first = false {
		rest = trimSpace(rest)
		if len(rest) == 1 && rest[0] == '}' && !first {
			if id == nil || status == nil {
				break
			}
			return id, status, result, nil
		}
		if !first {
			if rest, ok = bytes.CutPrefix(rest, []byte(",")); !ok {
				break
			}
		}
		var name, value []byte
		if name, rest, ok = cutValue(rest); !ok {
			break
		}
		if rest, ok = bytes.CutPrefix(trimSpace(rest), []byte(":")); !ok {
			break
		}
		if value, rest, ok = cutValue(rest); !ok {
			break
		}
		switch string(name) {
		case `"command_id"`:
			id, ok = stringText(value)
		case `"status"`:
			status, ok = stringText(value)
		case `"result"`:
			result = value
		default:
			ok = false
		}
	}
	return nil, nil, nil, errNotAnswer
}

func trimSpace(text []byte) []byte {
	for len(text) > 0 && (text[0] == ' ' || text[0] == '\t' || text[0] == '\n' || text[0] == '\r') {
		text = text[1:]
	}
	for n := len(text); n > 0 && (text[n-1] == ' ' || text[n-1] == '\t' || text[n-1] == '\n' || text[n-1] == '\r'); n-- {
		text = text[:n-1]
	}
	return text
}

// stringText returns what stands between the quotes of a string in which nothing is escaped.
func stringText(value []byte) (text []byte, ok bool) {
	if len(value) < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
		return nil, false
	}
	return value[1 : len(value)-1 : len(value)-1], true
}

// cutValue cuts the JSON value that text begins with, as far as it can be told where a value ends without looking at
// what it is: text is valid JSON.
func cutValue(text []byte) (value, rest []byte, ok bool) {
	text = trimSpace(text)
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
			if !inString && depth == 0 {
				return text[:i+1], text[i+1:], true
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case (c == '}' || c == ']') && depth > 0:
			if depth--; depth == 0 {
				return text[:i+1], text[i+1:], true
			}
		case depth == 0 && (c == ',' || c == ':' || c == '}' || c == ']' || c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			return text[:i], text[i:], i > 0
		}
	}
	return nil, nil, false
}
