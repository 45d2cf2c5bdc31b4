// Package diagnose says what is wrong with a device's message: why it is no envelope, which mistake gave its signature, and
// in what its timestamp counts. It names each with what to do about it.
package diagnose

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"mosquitto-bouncer/plugin/textfile"
)

// members are an envelope's, in the order in which Sign writes them.
var members = []string{"device_id", "timestamp", "message_id", "payload", "signature"}

func mustQuote(text string) []byte {
	quoted, err := jsontext.AppendQuote(nil, text)
	if err != nil {
		return []byte(`""`)
	}
	return quoted
}

// Malformed finds the usual mistakes that keep a message from being an envelope, each a sentence with its cure, and
// returns the message with them put right as far as they can be.
func Malformed(message []byte) (found []string, repaired []byte) {
	text, err := textfile.Decode(message)
	if err != nil {
		return []string{"the message " + err.Error()}, message
	}
	if !bytes.Equal(text, message) {
		found = append(found, "the message begins with a byte order mark, or is UTF-16; publish UTF-8 without a mark")
	}
	if cut := bytes.TrimRight(text, "\x00"); len(cut) < len(text) {
		found, text = append(found, "the message ends with a NUL byte; publish strlen bytes, not sizeof"), cut
	}
	whole, err := parseNode(text)
	switch {
	case err != nil && bytes.Contains(text, []byte("'device_id'")):
		return append(found, "the message is as Python's str() writes it; publish what json.dumps returns"), text
	case err != nil:
		return found, text
	case whole.kind == '"':
		inner := []byte(unquoted(whole.raw))
		if n, err := parseNode(inner); err == nil && n.kind == '{' {
			more, repaired := Malformed(inner)
			return append(append(found, "the whole message is a JSON string that holds the message, so it was encoded twice; publish the object itself"), more...), repaired
		}
	}
	if whole.kind != '{' {
		return append(found, "the message is not a JSON object; publish one with the members "+strings.Join(members, ", ")), text
	}
	var values map[string]json.RawMessage
	if json.Unmarshal(text, &values) != nil {
		return found, text
	}
	more, repaired := repair(whole, values)
	return append(found, more...), repaired
}

// repair is Malformed for an object.
func repair(whole node, values map[string]json.RawMessage) (found []string, repaired []byte) {
	for i := range whole.names {
		name := unquoted(whole.names[i])
		right := memberName(name)
		switch {
		case slices.Contains(members, name):
			if whole.names[i] != `"`+name+`"` {
				found = append(found, fmt.Sprintf("the name %s is written with escapes; write it plainly", name))
			}
		case right != "" && values[right] == nil:
			found = append(found, fmt.Sprintf("the member %q is to be called %q", name, right))
			values[right] = values[name]
		default:
			found = append(found, fmt.Sprintf("there is a member %q in addition to the five; leave it out, or put it into the payload", name))
		}
	}
	var b bytes.Buffer
	for _, name := range members {
		value := values[name]
		if value == nil {
			found = append(found, "there is no member "+name+"; a message has "+strings.Join(members, ", "))
			continue
		}
		if n, err := parseNode(value); err == nil && name != "payload" {
			what, right := repairMember(name, n)
			if what != "" {
				found = append(found, name+" "+what)
				value = json.RawMessage(right)
			}
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", name, value)
	}
	return found, []byte("{" + b.String() + "}")
}

// memberName returns the member that a name in another spelling stands for, deviceId for example; "" for none.
func memberName(name string) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
	}
	for _, right := range members {
		if plain(name) == plain(right) {
			return right
		}
	}
	return map[string]string{"ts": "timestamp", "time": "timestamp", "id": "message_id", "uuid": "message_id", "msgid": "message_id",
		"device": "device_id", "data": "payload", "sig": "signature", "hmac": "signature", "mac": "signature"}[plain(name)]
}

// repairMember says what is wrong with a member's value and what to do; right is the value as it is to be written.
func repairMember(name string, n node) (what, right string) {
	text, isText := unquoted(n.raw), n.kind == '"'
	plain := string(mustQuote(text))
	switch name {
	case "timestamp":
		return repairTimestamp(n, text)
	case "signature":
		if isText {
			return repairSignature(text)
		}
	case "message_id":
		id, err := uuid.Parse(strings.TrimSpace(text))
		if isText && err == nil && text != id.String() && !strings.EqualFold(text, id.String()) {
			return fmt.Sprintf("is a UUID in another form; write its 36 characters, %s", id), `"` + id.String() + `"`
		}
	case "device_id":
		if n.kind == '0' {
			return "is a number; write it in quotes", `"` + n.raw + `"`
		}
		if isText && strings.TrimSpace(text) != text {
			return "has blanks around it; leave them out", string(mustQuote(strings.TrimSpace(text)))
		}
	}
	if isText && n.raw != plain {
		return "is written with escapes; write its characters as they are", plain
	}
	return "", ""
}

func repairTimestamp(n node, text string) (what, right string) {
	number, quoted := n.raw, ""
	if n.kind == '"' {
		number, quoted = text, "a string; "
	}
	if _, err := strconv.ParseInt(number, 10, 64); err == nil && quoted != "" {
		return "is a string; send the number without quotes", number
	}
	if f, err := strconv.ParseFloat(number, 64); err == nil && isFloat(number) && f > -1e18 && f < 1e18 {
		return "is " + quoted + "a number with a fraction or an exponent; sign and send whole seconds, only digits", strconv.FormatInt(int64(f), 10)
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05"} {
		if at, err := time.Parse(form, text); err == nil {
			return "is a date; sign and send the seconds since 1970, a number", strconv.FormatInt(at.Unix(), 10)
		}
	}
	return "", ""
}

func repairSignature(text string) (what, right string) {
	const digits = "write 64 hexadecimal digits"
	plain := strings.TrimSpace(text)
	for _, prefix := range []string{"sha256=", "0x", "0X", "v1,", "hmac-sha256:", "HMAC-SHA256:", "sha256:"} {
		if rest, found := strings.CutPrefix(plain, prefix); found {
			plain, what = rest, fmt.Sprintf("begins with %q; %s only", prefix, digits)
			break
		}
	}
	separated := strings.NewReplacer(":", "", " ", "", "-", "").Replace(plain)
	raw, err := hex.DecodeString(separated)
	switch {
	case err == nil && len(raw) == 32 && what == "" && separated != text:
		what = "has separators or blanks in it; " + digits + " only"
	case err == nil && len(raw) == 32:
	case err == nil && len(raw) == 64:
		return "", "" // of a public key, maybe: see Length
	case err == nil && len(raw) > 64 && isDER(raw):
		return "is in DER; write r and s, each as 64 hexadecimal digits", string(mustQuote(text))
	case err == nil && (len(raw) == 20 || len(raw) == 48 || len(raw) == 16):
		name := map[int]string{16: "MD5", 20: "SHA-1", 48: "SHA-384"}[len(raw)]
		return fmt.Sprintf("is as long as one of HMAC-%s; use HMAC-SHA256", name), string(mustQuote(text))
	default:
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			if raw, err = encoding.DecodeString(plain); err != nil {
				continue
			}
			if len(raw) == 64 {
				if inner, err := hex.DecodeString(string(raw)); err == nil {
					return "is base64 of the hexadecimal digits; " + digits + " as they are", `"` + hex.EncodeToString(inner) + `"`
				}
			}
			if len(raw) == 32 {
				return "is in base64; " + digits, `"` + hex.EncodeToString(raw) + `"`
			}
		}
		return "", ""
	}
	if what == "" {
		return "", ""
	}
	return what, `"` + hex.EncodeToString(raw) + `"`
}
