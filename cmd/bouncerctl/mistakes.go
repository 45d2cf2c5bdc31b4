package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
)

// A guess is one thing that a firmware may have done otherwise: what it is, and what to do about it.
type guess struct {
	text       string
	what, cure string // "" where it is right
}

// mistake names the usual mistake by which the signature came about, in one sentence with the cure; "" if it was none that
// is known. Every guess is tried: no name is given that does not give this very signature.
func (v *verification) mistake() string {
	payload, err := parseNode(v.e.Payload)
	if err != nil {
		return ""
	}
	common, rare := payloadGuesses(payload, v.e)
	joins := joinsOf(v.e)
	for _, secret := range v.secrets {
		for i, key := range secretGuesses(secret) {
			k := envelope.NewKey([]byte(key.text))
			for _, j := range joins {
				forms := common
				if i == 0 && j.what == "" {
					forms = append(slices.Clone(common), rare...)
				}
				for _, p := range forms {
					if said := sentence(j.guess, p, key); said != "" && v.e.IsMAC(k, []byte(j.join(p.text))) {
						return said
					}
				}
			}
		}
		if said := v.otherOrders(secret, payload, joins[0]); said != "" {
			return said
		}
		for _, whole := range wholeGuesses(v.message) {
			if v.e.IsMAC(envelope.NewKey(secret), []byte(whole.text)) {
				return sentence(whole)
			}
		}
		if said := v.cutOrInMilliseconds(secret); said != "" {
			return said
		}
		if said := v.otherHash(secret, []byte(joins[0].join(string(v.e.Payload)))); said != "" {
			return said
		}
	}
	return ""
}

// sentence names what is wrong and what to do; "" where nothing is.
func sentence(guesses ...guess) string {
	var what, cure []string
	for _, g := range guesses {
		if g.what != "" {
			what, cure = append(what, g.what), append(cure, g.cure)
		}
	}
	if len(what) == 0 {
		return ""
	}
	return strings.Join(what, " and ") + ": " + strings.Join(cure, "; ")
}

const signAsSent = "sign the bytes that are sent, or the payload in canonical form"

// payloadGuesses returns what may stand in the payload's place under the signature: what is worth trying with every other
// mistake, and what is tried by itself.
func payloadGuesses(n node, e *envelope.Envelope) (common, rare []guess) {
	blank := spelling{comma: ", ", colon: ": "}
	spaced := guess{what: "the payload with a blank behind each comma and colon, as Python writes it by default",
		cure: `send that very text, or sign it without blanks (separators=(",", ":"))`}
	asSent, canonical := string(e.Payload), string(e.Canonical())
	common = []guess{
		{text: asSent}, {text: canonical},
		{blank.write(n), spaced.what, spaced.cure},
		{spelling{}.write(n), "the payload without blanks, in the order in which it was sent, but it was sent with blanks", signAsSent},
		{asSent + "\n", "a line end behind the payload", "leave it out"},
		{asSent + "\x00", "a NUL byte behind the payload", "take the text's length without the NUL (strlen, not sizeof)"},
	}
	add := func(what, cure string, texts ...string) {
		for _, text := range texts {
			rare = append(rare, guess{text, what, cure})
		}
	}
	blank.order = byName
	add(spaced.what+", its members sorted", spaced.cure, blank.write(n))
	for _, indent := range []string{"  ", "    ", "\t"} {
		for _, order := range []func([]string, int, int) int{nil, byName} {
			text := spelling{colon: ": ", indent: indent, order: order}.write(n)
			add("the payload with indentation", "send that very text, or sign it without blanks", text, text+"\n", strings.ReplaceAll(text, "\n", "\r\n"))
		}
	}
	for _, half := range []spelling{{colon: ": "}, {comma: ", "}, {colon: " : "}, {colon: " : ", comma: ", "}, {colon: " : ", comma: " , "}} {
		add("the payload with blanks at its commas or colons", "send that very text, or sign it without blanks", half.write(n))
	}
	both := func(what, cure string, s spelling) {
		for _, order := range []func([]string, int, int) int{nil, byName, byUTF16} {
			s.order = order
			s.comma, s.colon = "", ""
			add(what, cure, s.write(n))
			s.comma, s.colon = ", ", ": "
			add(what, cure, s.write(n))
		}
	}
	const number = "sign and send a number in the same spelling: format it once"
	both("numbers written without a fraction of zero (22.0 as 22), or without zeros at its end (22.50 as 22.5)", number, spelling{number: shortest})
	both("whole numbers written with a fraction (22 as 22.0)", number, spelling{number: withFraction})
	both("numbers written as Python writes them", number, spelling{number: pythonFloat})
	both("numbers rounded to 64-bit floating point, as JavaScript has them", number, spelling{number: rounded})
	both("numbers rounded to 32-bit floating point, as C's float", number, spelling{number: single})
	both("numbers written as C's %g writes them", number, spelling{number: general})
	for digits := range 7 {
		both("numbers written with "+strconv.Itoa(digits)+" decimals", number, spelling{number: decimals(digits, false)})
		both("all numbers written with "+strconv.Itoa(digits)+" decimals", number, spelling{number: decimals(digits, true)})
	}
	const text = "sign and send a text in the same spelling: in Python, the same ensure_ascii for both"
	both(`characters that are not ASCII written as \uXXXX, but sent as they are (json.dumps without ensure_ascii=False)`, text, spelling{text: ascii("%04x")})
	both(`characters that are not ASCII written as \uXXXX in upper case`, text, spelling{text: ascii("%04X")})
	both(`characters written as they are, but sent as \uXXXX (ensure_ascii)`, text, spelling{text: plainText})
	both(`"<", ">" and "&" written as \u003c, as Go writes them by default`, text, spelling{text: forHTML})
	both(`"/" written as "\/", as PHP writes it by default`, text, spelling{text: slashes})
	const order = "sign the members in the order in which they are sent, or sorted by name as docs/envelope.md says"
	for what, by := range map[string]func([]string, int, int) int{
		"the payload's members sorted as numbers (json.dumps with sort_keys sorts keys that are numbers so)": byNumber,
		"the payload's members sorted without regard to letter case":                                         byLowerCase,
		"the payload's members sorted by code points":                                                        byName,
		"the payload's members sorted backwards":                                                             backwards,
		"the payload's members in another order, backwards":                                                  asSentBackwards,
	} {
		add(what, order, spelling{order: by}.write(n), spelling{order: by, comma: ", ", colon: ": "}.write(n))
	}
	add("the payload as Python's str() writes it", "sign what json.dumps returned", python(n))
	if n.kind == '"' {
		inner := unquoted(n.raw)
		cure := "send the payload as a value, not as a string that holds JSON (it was encoded twice)"
		add("the JSON in the payload's string", cure, inner)
		if value, err := parseNode([]byte(inner)); err == nil {
			add("the JSON in the payload's string", cure, spelling{}.write(value), spelling{order: byUTF16}.write(value))
		}
	}
	if filled := withoutNulls(n); len(filled.kids) != len(n.kids) {
		add("the payload without the members that are null", "sign what is sent", spelling{}.write(filled), spelling{comma: ", ", colon: ": "}.write(filled))
	}
	quoted := string(mustQuote(spelling{}.write(n)))
	add("the payload as a JSON string", "sign the value that is sent", quoted, string(mustQuote(spelling{comma: ", ", colon: ": "}.write(n))))
	add("the payload in base64", "sign the payload itself", base64.StdEncoding.EncodeToString(e.Payload))
	add("the payload's SHA-256", "sign the payload itself", hexSHA256(e.Payload))
	add("no payload", "sign the payload too", "")
	return common, rare
}

// otherOrders tries every order of the members of one object of the payload, while the others are as sent.
func (v *verification) otherOrders(secret registry.Secret, payload node, right joined) (said string) {
	key := envelope.NewKey(secret)
	var visit func(n *node) bool
	visit = func(n *node) bool {
		sent := *n
		if n.kind == '{' {
			permutations(len(n.kids), func(order []int) bool {
				n.names, n.kids = nil, nil
				for _, i := range order {
					n.names, n.kids = append(n.names, sent.names[i]), append(n.kids, sent.kids[i])
				}
				for _, s := range []spelling{{}, {comma: ", ", colon: ": "}} {
					if v.e.IsMAC(key, []byte(right.join(s.write(payload)))) {
						said = sentence(guess{what: "the payload with its members in another order than they were sent in",
							cure: "sign the members in the order in which they are sent, or sorted by name as docs/envelope.md says"})
						return false
					}
				}
				return true
			})
			*n = sent
		}
		for i := range n.kids {
			if said != "" {
				break
			}
			visit(&n.kids[i])
		}
		return said == ""
	}
	visit(&payload)
	return said
}

// longestCut bounds the texts of which every beginning is tried.
const longestCut = 4096

// cutOrInMilliseconds finds a signature of the beginning of the right text, and one over the milliseconds of which the
// message has the seconds.
func (v *verification) cutOrInMilliseconds(secret registry.Secret) string {
	key := envelope.NewKey(secret)
	for _, canonical := range []bool{false, true} {
		text := v.e.AppendSigned(nil, canonical)
		for n := min(len(text), longestCut); n > 0; n-- {
			if v.e.IsMAC(key, text[:n]) {
				return sentence(guess{what: fmt.Sprintf("the first %d of %d bytes", n, len(text)),
					cure: "make the buffer larger, and check what snprintf returns"})
			}
		}
		payload := v.e.Payload
		if canonical {
			payload = v.e.Canonical()
		}
		head := text[:len(text)-len(payload)]
		at := len(head) - len(v.e.MessageIDText)
		for ms := range 1000 {
			if v.e.IsMAC(key, fmt.Appendf(nil, "%s%03d%s", head[:at], ms, text[at:])) {
				return sentence(guess{what: "a timestamp in milliseconds", cure: "sign and send seconds, the same digits"})
			}
		}
	}
	return ""
}

// A joined is a way to join the four parts.
type joined struct {
	guess
	join func(payload string) string
}

// joinsOf returns the ways to join an envelope's parts, the right one first.
func joinsOf(e *envelope.Envelope) (all []joined) {
	head := e.AppendSigned(nil, false)
	head = head[:len(head)-len(e.Payload)]
	device, id := string(e.DeviceID), string(e.MessageIDText)
	timestamp := strings.TrimSuffix(strings.TrimPrefix(string(head), device), id)
	add := func(what, cure string, join func(p string) string) {
		all = append(all, joined{guess{what: what, cure: cure}, join})
	}
	parts := func(what, cure, device, timestamp, id string) {
		add(what, cure, func(p string) string { return device + timestamp + id + p })
	}
	add("", "", func(p string) string { return device + timestamp + id + p })
	for separator, name := range map[string]string{"|": "", ".": "", ":": "", ",": "", ";": "", "-": "", "_": "", "/": "", "&": "",
		"\n": "a line end", "\r\n": "CRLF", " ": "a blank", "\t": "a tab", "\x00": "a NUL byte"} {
		if name == "" {
			name = `"` + separator + `"`
		}
		add(name+" between the parts", "join them with nothing between", func(p string) string {
			return strings.Join([]string{device, timestamp, id, p}, separator)
		})
	}
	const order = "sign device_id, timestamp, message_id and payload, in that order"
	add("the payload alone", order, func(p string) string { return p })
	add("message_id before timestamp", order, func(p string) string { return device + id + timestamp + p })
	add("timestamp before device_id", order, func(p string) string { return timestamp + device + id + p })
	add("timestamp and message_id before device_id", order, func(p string) string { return timestamp + id + device + p })
	add("message_id first", order, func(p string) string { return id + device + timestamp + p })
	add("the payload first", order, func(p string) string { return p + device + timestamp + id })
	add("the parts without message_id", order, func(p string) string { return device + timestamp + p })
	add("the parts without device_id", order, func(p string) string { return timestamp + id + p })
	add("the parts without timestamp", order, func(p string) string { return device + id + p })
	add("the parts without timestamp and message_id", order, func(p string) string { return device + p })
	const same = "sign the very characters that are sent"
	if plain := strings.ReplaceAll(id, "-", ""); plain != id {
		parts("message_id without its hyphens", same, device, timestamp, plain)
	}
	for _, letters := range []struct {
		name string
		to   func(string) string
	}{{"lower", strings.ToLower}, {"upper", strings.ToUpper}} {
		if other := letters.to(id); other != id {
			parts("message_id in "+letters.name+" case", same, device, timestamp, other)
		}
		if other := letters.to(device); other != device {
			parts("device_id in "+letters.name+" case", same, other, timestamp, id)
		}
	}
	parts("a timestamp in milliseconds", "sign and send seconds, the same digits", device, timestamp+"000", id)
	parts("a timestamp in microseconds", "sign and send seconds, the same digits", device, timestamp+"000000", id)
	for unit, digits := range map[string]int{"milliseconds": 3, "microseconds": 6, "nanoseconds": 9} {
		if len(timestamp) > 9+digits {
			parts("a timestamp in seconds, but it was sent in "+unit, "send seconds too", device, timestamp[:len(timestamp)-digits], id)
		}
	}
	parts("a timestamp with a fraction", "write whole seconds without a fraction", device, timestamp+".0", id)
	parts("a timestamp in quotes", "sign the digits alone", device, `"`+timestamp+`"`, id)
	parts("device_id and message_id in quotes", "sign the characters between the quotes", `"`+device+`"`, timestamp, `"`+id+`"`)
	if at := time.Unix(e.Timestamp, 0).UTC(); at.Year() > 0 && at.Year() < 10000 {
		for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04:05+00:00", "2006-01-02 15:04:05"} {
			parts("the timestamp as a date", "sign the digits that are sent", device, at.Format(form), id)
		}
	}
	return all
}

// secretGuesses returns what may have been the key, the right one first.
func secretGuesses(secret registry.Secret) (all []guess) {
	text := string(secret)
	add := func(what, cure, key string) {
		if key != "" && !slices.ContainsFunc(all, func(g guess) bool { return g.text == key }) {
			all = append(all, guess{key, what, cure})
		}
	}
	const strip = "strip the line end when the secret is read"
	add("", "", text)
	add("a line end behind the secret", strip, text+"\n")
	add("a line end behind the secret", strip, text+"\r\n")
	add("a NUL byte behind the secret", "take the secret's length without the NUL", text+"\x00")
	add("a byte order mark before the secret", "save the secret without one", "\ufeff"+text)
	add("the secret in quotes", "leave the quotes out", `"`+text+`"`)
	add("the secret without the blanks around it", "the blanks are part of the secret in the registry: register it without them", strings.TrimSpace(text))
	add("the secret in upper case", "use the very characters", strings.ToUpper(text))
	add("the secret in lower case", "use the very characters", strings.ToLower(text))
	const decoded = "its characters themselves are the key: do not decode them"
	if raw, err := hex.DecodeString(text); err == nil {
		add("the secret decoded from hexadecimal, where its digits themselves are the key", decoded, string(raw))
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if raw, err := encoding.DecodeString(text); err == nil {
			add("the secret decoded from base64", decoded, string(raw))
		}
	}
	const plain = "use the secret's characters as they are"
	add("the secret in hexadecimal", plain, hex.EncodeToString(secret))
	add("the secret in base64", plain, base64.StdEncoding.EncodeToString(secret))
	sum := sha256.Sum256(secret)
	add("the secret's SHA-256", plain, string(sum[:]))
	add("the secret's SHA-256 in hexadecimal", plain, hex.EncodeToString(sum[:]))
	for _, most := range []int{16, 31, 32, 63, 64} {
		if len(text) > most {
			add("the secret's first "+strconv.Itoa(most)+" characters", "make the buffer for the secret larger", text[:most])
		}
	}
	return all
}

// wholeGuesses returns the message as it may have been signed whole, without its signature.
func wholeGuesses(message []byte) (all []guess) {
	n, err := parseNode(message)
	if err != nil || n.kind != '{' {
		return nil
	}
	without, empty, null := node{kind: '{'}, node{kind: '{'}, node{kind: '{'}
	for i, name := range n.names {
		kid := n.kids[i]
		if unquoted(name) == "signature" {
			empty.names, empty.kids = append(empty.names, name), append(empty.kids, node{kind: '"', raw: `""`})
			null.names, null.kids = append(null.names, name), append(null.kids, node{kind: 'n', raw: "null"})
			continue
		}
		without.names, without.kids = append(without.names, name), append(without.kids, kid)
		empty.names, empty.kids = append(empty.names, name), append(empty.kids, kid)
		null.names, null.kids = append(null.names, name), append(null.kids, kid)
	}
	add := func(n node) {
		for _, s := range []spelling{{}, {comma: ", ", colon: ": "}, {order: byUTF16}, {order: byUTF16, comma: ", ", colon: ": "},
			{indent: "  ", colon: ": "}, {indent: "    ", colon: ": "}} {
			all = append(all, guess{s.write(n), "the whole object", "sign device_id, timestamp, message_id and payload, joined with nothing between"})
		}
	}
	add(without)
	add(empty)
	add(null)
	permutations(len(without.names), func(order []int) bool {
		other := node{kind: '{'}
		for _, i := range order {
			other.names, other.kids = append(other.names, without.names[i]), append(other.kids, without.kids[i])
		}
		add(other)
		return true
	})
	return all
}

// otherHash finds a signature that is of the right text, and no HMAC-SHA256 of it.
func (v *verification) otherHash(secret, text []byte) string {
	is := func(sum []byte) bool { return hmac.Equal(sum, v.e.MAC[:]) }
	plain := func(parts ...[]byte) []byte {
		sum := sha256.Sum256(bytes.Join(parts, nil))
		return sum[:]
	}
	turned := hmac.New(sha256.New, text)
	turned.Write(secret)
	const cure = "use HMAC (RFC 2104), with the secret as its key and the text as its message"
	switch {
	case is(plain(secret, text)), is(plain(text, secret)):
		return sentence(guess{what: "SHA-256 over the secret and the text", cure: cure})
	case is(plain(text)):
		return sentence(guess{what: "SHA-256 over the text, without the secret", cure: cure})
	case is(turned.Sum(nil)):
		return sentence(guess{what: "HMAC with its key and its message changed over", cure: cure})
	}
	return ""
}

func hexSHA256(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
