package vectors

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/envelope"
)

func commands(t *testing.T, all []who) (list []received) {
	const expires = now + 30
	body := `{"set":"interval","seconds":30}`
	payload := fmt.Sprintf(`{"command":%s,"expires":%d}`, body, expires)
	at := func(seconds int64) *int64 { return &seconds }
	for i, d := range all {
		other := all[(i+1)%len(all)]
		add := func(name, message string, clock *int64, expect, command string, until int64) {
			v := received{Name: d.Algorithm + ": " + name, Device: d.ID, Message: textOf(message), Now: clock, Expect: expect}
			if expect == "good" {
				c := textOf(command)
				v.ID, v.Command, v.Expires = commandID, &c, until
			}
			list = append(list, v)
		}
		of := func(payload string) string { return sign(t, d.gateway, d.ID, fmt.Sprint(now), commandID, payload) }
		for _, v := range forms(t, d.gateway, d, commandID, payload, "good", "forged") {
			v.Now = at(now)
			if strings.Contains(v.Name, "id in upper case") {
				v.ID = strings.ToUpper(commandID)
			} else if v.Expect == "good" {
				v.ID = commandID
			}
			if v.Expect == "good" {
				c := textOf(body)
				v.Command, v.Expires = &c, expires
			}
			list = append(list, v)
		}
		for _, p := range payloads {
			if strings.HasPrefix(p.name, "nested 63") { // with the object around it, one too deep
				add("command: "+p.name, of(fmt.Sprintf(`{"command":%s,"expires":%d}`, p.text, expires)), nil, "malformed", "", 0)
				continue
			}
			add("command: "+p.name, of(fmt.Sprintf(`{"command":%s,"expires":%d}`, p.text, expires)), at(now), "good", p.text, expires)
		}
		add("the last second", of(payload), at(expires-1), "good", body, expires)
		add("at its end", of(payload), at(expires), "expired", "", 0)
		add("long after its end", of(payload), at(expires+1e9), "expired", "", 0)
		add("without a clock", of(payload), nil, "good", body, expires)
		add("a clock at 1970", of(payload), at(0), "good", body, expires)
		add("members in the other order, with white space", of(fmt.Sprintf("{ \"expires\" : %d , \"command\" : %s }", expires, body)), at(now), "good", body, expires)
		add("the greatest expires", of(`{"command":1,"expires":9007199254740991}`), at(now), "good", "1", 9007199254740991)
		add("a message of the device itself", sign(t, d.signer, d.ID, fmt.Sprint(now), messageID, payload), at(now), map[bool]string{true: "malformed", false: "forged"}[d.Secrets != nil], "", 0)
		for _, seconds := range []string{"-1", "-0", "9007199254740992"} {
			add("timestamp "+seconds, sign(t, d.gateway, d.ID, seconds, commandID, payload), at(now), "malformed", "", 0)
		}
		add("an id that is not of version 8", sign(t, d.gateway, d.ID, fmt.Sprint(now), messageID, payload), at(now), "malformed", "", 0)
		add("for another device", sign(t, d.gateway, other.ID, fmt.Sprint(now), commandID, payload), at(now), "foreign", "", 0)
		add("for a device whose id this one's begins with", sign(t, d.gateway, d.ID[:len(d.ID)-1], d.ID[len(d.ID)-1:]+fmt.Sprint(now), commandID, payload), at(now), "foreign", "", 0)
		add("signed for another device", sign(t, other.gateway, d.ID, fmt.Sprint(now), commandID, payload), at(now), "forged", "", 0)
		if d.Secrets != nil {
			add("signed with the older secret", sign(t, envelope.NewSigner([]byte(d.Secrets[1])), d.ID, fmt.Sprint(now), commandID, payload), at(now), "good", body, expires)
			add("signed with no secret", sign(t, emptyKey{}, d.ID, fmt.Sprint(now), commandID, payload), at(now), "forged", "", 0)
		} else {
			add("signed with the device's own key", sign(t, d.signer, d.ID, fmt.Sprint(now), commandID, payload), at(now), "forged", "", 0)
		}
		for name, p := range map[string]string{
			"no expires":                    `{"command":1}`,
			"no command":                    `{"expires":1727712030}`,
			"a third member":                `{"command":1,"expires":1727712030,"x":1}`,
			"expires a string":              `{"command":1,"expires":"1727712030"}`,
			"expires null":                  `{"command":1,"expires":null}`,
			"expires with a fraction":       `{"command":1,"expires":1727712030.0}`,
			"expires with an exponent":      `{"command":1,"expires":2e9}`,
			"expires negative":              `{"command":1,"expires":-1}`,
			"expires above 2^53-1":          `{"command":1,"expires":9007199254740992}`,
			"expires above 64 bits":         `{"command":1,"expires":36893488147419103232}`,
			"an escape in the name command": `{"c\u006fmmand":1,"expires":1727712030}`,
			"an escape in the name expires": `{"command":1,"\u0065xpires":1727712030}`,
			"the payload an array":          `[1,1727712030]`,
			"the payload a number":          `1`,
			"the payload a string":          `"{\"command\":1,\"expires\":1727712030}"`,
			"the payload empty":             `{}`,
		} {
			add(name, of(p), at(now), "malformed", "", 0)
		}
		long := fmt.Sprintf(`{"command":"%s","expires":%d}`, strings.Repeat("x", 65534), expires)
		add("a body of 64 KiB", of(long), at(now), "good", `"`+strings.Repeat("x", 65534)+`"`, expires)
		tooLong := of(fmt.Sprintf(`{"command":"%s","expires":%d}`, strings.Repeat("x", 66560), expires))
		add("longer than 66560 bytes", tooLong, at(now), "malformed", "", 0)
	}
	sortByName(list, func(r received) string { return r.Device + r.Name })
	return list
}

// emptyKey signs with the key that everyone has.
type emptyKey struct{}

func (emptyKey) Signature(text []byte) ([]byte, error) {
	mac := hmac.New(sha256.New, nil)
	mac.Write(text)
	return mac.Sum(nil), nil
}

func memories() []memory {
	id := func(n int) string { return fmt.Sprintf("01923456-789a-8bcd-8def-%012x", n) }
	return []memory{
		{"once", 4, []step{
			{id(1), 100, "new"}, {id(1), 100, "repeated"}, {id(2), 100, "new"}, {id(1), 100, "repeated"}, {id(2), 100, "repeated"},
			{strings.ToUpper(id(10)), 100, "new"}, {id(10), 100, "repeated"},
		}},
		{"the lowest expiry makes room, and raises the floor", 2, []step{
			{id(1), 300, "new"}, {id(2), 100, "new"}, {id(3), 200, "new"}, {id(2), 100, "expired"}, {id(1), 300, "repeated"},
			{id(4), 100, "expired"}, {id(5), 50, "expired"}, {id(6), 101, "new"}, {id(6), 101, "expired"}, {id(3), 200, "repeated"},
		}},
		{"the new one is the lowest: executed, not kept, and not executed again", 2, []step{
			{id(1), 300, "new"}, {id(2), 200, "new"}, {id(3), 150, "new"}, {id(3), 150, "expired"}, {id(1), 300, "repeated"}, {id(2), 200, "repeated"},
			{id(4), 150, "expired"}, {id(5), 151, "new"},
		}},
		{"room for one", 1, []step{
			{id(1), 10, "new"}, {id(2), 20, "new"}, {id(1), 10, "expired"}, {id(2), 20, "repeated"}, {id(3), 15, "new"}, {id(3), 15, "expired"},
		}},
		{"repeated goes before expired", 2, []step{
			{id(1), 100, "new"}, {id(2), 100, "new"}, {id(3), 100, "new"}, {id(4), 100, "expired"},
		}},
		{"the same id with another expiry is repeated", 4, []step{{id(1), 100, "new"}, {id(1), 200, "repeated"}}},
	}
}

func answers() []answer {
	none := answer{CommandID: commandID, Status: "succeeded", Payload: textOf(fmt.Sprintf(`{"command_id":"%s","status":"succeeded"}`, commandID))}
	list := []answer{none}
	for _, status := range []string{"succeeded", "failed", "rejected"} {
		for _, result := range []string{`null`, `{"seconds": 30}`, `"text \u00e9"`, `[1,2.0]`} {
			r := textOf(result)
			list = append(list, answer{commandID, status, &r, textOf(fmt.Sprintf(`{"command_id":"%s","status":"%s","result":%s}`, commandID, status, result))})
		}
	}
	return list
}

func notices() []notice {
	list := []notice{
		{"as the gateway sends it", textOf(`{"message_id":"` + messageID + `","reason":"stale","server_time":1727712000}`), true, messageID, "stale", now},
		{"without an id", textOf(`{"message_id":null,"reason":"malformed","server_time":1727712000}`), true, "", "malformed", now},
		{"another order, white space, more members", textOf(` {"x":[{}], "server_time" : 1727712000 , "reason":"replay","message_id":"` + messageID + `"} `), true, messageID, "replay", now},
	}
	for name, text := range map[string]string{
		"nothing": "", "no object": "[]", "no reason": `{"message_id":null,"server_time":1}`, "no server_time": `{"message_id":null,"reason":"stale"}`,
		"no message_id": `{"reason":"stale","server_time":1}`, "server_time a string": `{"message_id":null,"reason":"stale","server_time":"1"}`,
		"server_time a fraction": `{"message_id":null,"reason":"stale","server_time":1.5}`, "server_time negative": `{"message_id":null,"reason":"stale","server_time":-1}`,
		"reason a number": `{"message_id":null,"reason":1,"server_time":1}`, "no id": `{"message_id":"x","reason":"stale","server_time":1}`,
		"cut off": `{"message_id":null,"reason":"stale","server_time":1`, "not UTF-8": "{\"message_id\":null,\"reason\":\"\xff\",\"server_time\":1}",
	} {
		list = append(list, notice{Name: name, Message: textOf(text)})
	}
	sortByName(list, func(n notice) string { return n.Name })
	return list
}
