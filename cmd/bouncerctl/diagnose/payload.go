package diagnose

import (
	"encoding/base64"
	"strconv"
	"strings"

	"mosquitto-bouncer/plugin/envelope"
)

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
