package diagnose

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
)

// A guess is one thing that a firmware may have done otherwise: what it is, and what to do about it.
type guess struct {
	text       string
	what, cure string // "" where it is right
}

// A search is for the way in which a signature was made.
type search struct {
	e       *envelope.Envelope
	message []byte // as a whole
}

// Signature names the usual mistake that gives the signature of message, which e is of, under one of the device's secrets:
// one sentence with the cure. "" means that no known mistake gives it. Every guess is computed: only a mistake that gives
// exactly this signature is named.
func Signature(e *envelope.Envelope, message []byte, secrets []registry.Secret) string {
	q := &search{e, message}
	payload, err := parseNode(q.e.Payload)
	if err != nil {
		return ""
	}
	common, rare := payloadGuesses(payload, q.e)
	joins := joinsOf(q.e)
	for _, secret := range secrets {
		for i, key := range secretGuesses(secret) {
			k := envelope.NewHMAC([]byte(key.text))
			for _, j := range joins {
				forms := common
				if i == 0 && j.what == "" {
					forms = append(slices.Clone(common), rare...)
				}
				for _, p := range forms {
					if said := sentence(j.guess, p, key); said != "" && k.IsOver(q.e, []byte(j.join(p.text))) {
						return said
					}
				}
			}
		}
		if said := q.otherOrders(secret, payload, joins[0]); said != "" {
			return said
		}
		for _, whole := range wholeGuesses(q.message) {
			if envelope.NewHMAC(secret).IsOver(q.e, []byte(whole.text)) {
				return sentence(whole)
			}
		}
		if said := q.cutOrInMilliseconds(secret); said != "" {
			return said
		}
		if said := q.otherHash(secret, []byte(joins[0].join(string(q.e.Payload)))); said != "" {
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

// otherOrders tries every order of the members of one object of the payload, while the others are as sent.
func (q *search) otherOrders(secret registry.Secret, payload node, right joined) (said string) {
	key := envelope.NewHMAC(secret)
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
					if key.IsOver(q.e, []byte(right.join(s.write(payload)))) {
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
func (q *search) cutOrInMilliseconds(secret registry.Secret) string {
	key := envelope.NewHMAC(secret)
	for _, canonical := range []bool{false, true} {
		text := q.e.AppendSigned(nil, canonical)
		for n := min(len(text), longestCut); n > 0; n-- {
			if key.IsOver(q.e, text[:n]) {
				return sentence(guess{what: fmt.Sprintf("the first %d of %d bytes", n, len(text)),
					cure: "make the buffer larger, and check what snprintf returns"})
			}
		}
		payload := q.e.Payload
		if canonical {
			payload = q.e.Canonical()
		}
		head := text[:len(text)-len(payload)]
		at := len(head) - len(q.e.MessageIDText)
		for ms := range 1000 {
			if key.IsOver(q.e, fmt.Appendf(nil, "%s%03d%s", head[:at], ms, text[at:])) {
				return sentence(guess{what: "a timestamp in milliseconds", cure: "sign and send seconds, the same digits"})
			}
		}
	}
	return ""
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
func (q *search) otherHash(secret, text []byte) string {
	is := func(sum []byte) bool { return hmac.Equal(sum, q.e.Signature) }
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
		return sentence(guess{what: "HMAC with its key and its message exchanged", cure: cure})
	}
	return ""
}

func hexSHA256(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
