package vectors

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

// messages are what devices publish, and what the gateway says of signature and form.
func messages(t *testing.T, all []who) (list []received) {
	for i, d := range all {
		other := all[(i+1)%len(all)]
		add := func(name, message, expect string) {
			list = append(list, received{Name: d.Algorithm + ": " + name, Device: d.ID, Message: textOf(message), Expect: expect})
		}
		list = append(list, forms(t, d.signer, d, messageID, `{"a":1}`, "good", "bad_signature")...)
		for _, p := range payloads {
			add(p.name, sign(t, d.signer, d.ID, fmt.Sprint(now), messageID, p.text), "good")
		}
		for _, p := range badPayloads {
			add("no payload: "+p.name, sign(t, d.signer, d.ID, fmt.Sprint(now), messageID, p.text), "malformed")
		}
		add("signed by another device", sign(t, other.signer, d.ID, fmt.Sprint(now), messageID, "1"), "bad_signature")
		add("a command", sign(t, d.signer, d.ID, fmt.Sprint(now), commandID, "1"), "good") // the gate refuses the version, not the signature
		if d.Secrets != nil {
			add("signed with the older secret", sign(t, envelope.NewSigner([]byte(d.Secrets[1])), d.ID, fmt.Sprint(now), messageID, "1"), "good")
		} else {
			add("signed by the gateway's key", sign(t, d.gateway, d.ID, fmt.Sprint(now), messageID, "1"), "bad_signature")
		}
	}
	return list
}

// forms are envelopes that differ in their form alone: good and refused ones.
func forms(t *testing.T, s envelope.Signer, d who, id, payload, good, forged string) (list []received) {
	seconds := fmt.Sprint(now)
	add := func(name, message, expect string) {
		list = append(list, received{Name: d.Algorithm + ": " + name, Device: d.ID, Message: textOf(message), Expect: expect})
	}
	signature, err := s.Signature([]byte(d.ID + seconds + id + payload))
	if err != nil {
		t.Fatal(err)
	}
	digits := hex.EncodeToString(signature)
	message := envelopeOf(d.ID, seconds, id, payload, digits)
	member := func(name, value string) string { return fmt.Sprintf(`"%s":%s`, name, value) }
	members := []string{member("device_id", `"`+d.ID+`"`), member("timestamp", seconds), member("message_id", `"`+id+`"`),
		member("payload", payload), member("signature", `"`+digits+`"`)}
	join := func(m ...string) string { return "{" + strings.Join(m, ",") + "}" }
	replaced := func(at int, with string) string {
		m := append([]string(nil), members...)
		m[at] = with
		return join(m...)
	}

	add("as the library makes it", message, good)
	add("members in another order", join(members[4], members[2], members[3], members[0], members[1]), good)
	add("white space everywhere", " \t\r\n{ "+strings.Join(members, " ,\n\t")+" }\r\n", good)
	add("signature in upper case", replaced(4, member("signature", `"`+strings.ToUpper(digits)+`"`)), good)
	upper := strings.ToUpper(id)
	add("id in upper case", sign(t, s, d.ID, seconds, upper, payload), good)

	for i, name := range []string{"device_id", "timestamp", "message_id", "payload", "signature"} {
		without := append(append([]string(nil), members[:i]...), members[i+1:]...)
		add("without "+name, join(without...), "malformed")
		add(name+" twice", join(append(append([]string(nil), members...), members[i])...), "malformed")
		add(name+" with an escape in its name", replaced(i, strings.Replace(members[i], name[:1], fmt.Sprintf(`\u%04x`, name[0]), 1)), "malformed")
		add(name+" null", replaced(i, member(name, "null")), map[bool]string{true: forged, false: "malformed"}[name == "payload"])
	}
	add("a sixth member", join(append(append([]string(nil), members...), `"x":1`)...), "malformed")
	add("a name in upper case", strings.Replace(message, "payload", "Payload", 1), "malformed")
	add("timestamp a string", replaced(1, member("timestamp", `"`+seconds+`"`)), "malformed")
	add("timestamp with a fraction", replaced(1, member("timestamp", seconds+".0")), "malformed")
	add("timestamp with an exponent", replaced(1, member("timestamp", "1e9")), "malformed")
	add("timestamp with a leading zero", replaced(1, member("timestamp", "0"+seconds)), "malformed")
	add("timestamp above 64 bits", replaced(1, member("timestamp", "18446744073709551616")), "malformed")
	add("device_id with an escape", replaced(0, member("device_id", `"\u0073`+d.ID[1:]+`"`)), "malformed")
	add("device_id empty", replaced(0, member("device_id", `""`)), "malformed")
	add("device_id with a slash", replaced(0, member("device_id", `"a/b"`)), "malformed")
	add("device_id a number", replaced(0, member("device_id", "1")), "malformed")
	add("message_id with an escape", replaced(2, member("message_id", `"\u0035`+id[1:]+`"`)), "malformed")
	add("message_id too short", replaced(2, member("message_id", `"`+id[1:]+`"`)), "malformed")
	add("message_id with a hyphen at another place", replaced(2, member("message_id", `"`+id[:7]+"-"+id[7:8]+id[9:]+`"`)), "malformed")
	add("signature with an escape", replaced(4, member("signature", `"\u0061`+digits[1:]+`"`)), "malformed")
	add("signature one digit short", replaced(4, member("signature", `"`+digits[1:]+`"`)), "malformed")
	add("signature one byte short", replaced(4, member("signature", `"`+digits[2:]+`"`)), "malformed")
	add("signature empty", replaced(4, member("signature", `""`)), "malformed")
	add("signature with another letter", replaced(4, member("signature", `"g`+digits[1:]+`"`)), "malformed")
	add("signature zeros", replaced(4, member("signature", `"`+strings.Repeat("0", len(digits))+`"`)), forged)
	add("signature with one bit changed", replaced(4, member("signature", `"`+flipped(digits)+`"`)), forged)
	otherLength := strings.Repeat(digits, 2)[:192-len(digits)]
	add("a signature of the other length", replaced(4, member("signature", `"`+otherLength+`"`)), forged)
	if d.Algorithm == string(publickey.P256) {
		n := p256.Params().N
		high := new(big.Int).Sub(n, new(big.Int).SetBytes(signature[32:])).FillBytes(make([]byte, 32))
		add("s above half the order", replaced(4, member("signature", `"`+digits[:64]+hex.EncodeToString(high)+`"`)), forged)
	}
	if d.Algorithm == string(publickey.Ed25519) {
		add("S not reduced", replaced(4, member("signature", `"`+hex.EncodeToString(notReduced(signature))+`"`)), forged)
	}
	if d.PublicKey != "" {
		// What who mixes up algorithms would accept: an HMAC with the public key, which everyone may know, as its secret.
		mac := hmac.New(sha256.New, []byte(d.PublicKey))
		mac.Write([]byte(d.ID + seconds + id + payload))
		add("an HMAC with the public key as the secret", replaced(4, member("signature", `"`+hex.EncodeToString(mac.Sum(nil))+`"`)), forged)
	}
	add("another timestamp than was signed", replaced(1, member("timestamp", fmt.Sprint(now+1))), forged)
	add("another payload than was signed", replaced(3, member("payload", strings.Replace(payload, "1", "2", 1))), forged)
	add("the payload with other white space", replaced(3, member("payload", strings.Replace(payload, ":", ": ", 1))),
		map[bool]string{true: "", false: forged}[forged == "bad_signature"])
	add("an array", "["+message+"]", "malformed")
	add("nothing", "", "malformed")
	add("text after it", message+"x", "malformed")
	add("two of it", message+message, "malformed")
	add("a NUL after it", message+"\x00", "malformed")
	add("a byte order mark before it", "\ufeff"+message, "malformed")
	add("cut off", message[:len(message)-1], "malformed")
	add("a trailing comma", message[:len(message)-1]+",}", "malformed")
	add("not UTF-8 in a name", strings.Replace(message, "payload", "payl\xffad", 1), "malformed")
	kept := list[:0]
	for _, v := range list {
		if v.Expect != "" { // the gateway accepts the canonical form, a device does not
			kept = append(kept, v)
		}
	}
	return kept
}

// flipped changes the last bit of hexadecimal digits.
func flipped(digits string) string {
	b, _ := hex.DecodeString(digits)
	b[len(b)-1] ^= 1
	return hex.EncodeToString(b)
}

// notReduced adds the order of the group to S of an Ed25519 signature.
func notReduced(signature []byte) []byte {
	order, _ := new(big.Int).SetString("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed", 16)
	larger := bytes.Clone(signature)
	s := larger[32:]
	reverse(s)
	new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(s)
	reverse(s)
	return larger
}

func reverse(b []byte) {
	for i := range len(b) / 2 {
		b[i], b[len(b)-1-i] = b[len(b)-1-i], b[i]
	}
}
