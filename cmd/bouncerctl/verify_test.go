package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestUsualMistakes signs as firmwares do by mistake, and wants each named with what to do about it.
func TestUsualMistakes(t *testing.T) {
	const device, ts, id, secret = "Sensor_1", "1727712000", "550e8400-e29b-41d4-a716-446655440000", "6b6579abcdef00112233445566778899"
	mac := func(key, text string) string {
		h := hmac.New(sha256.New, []byte(key))
		h.Write([]byte(text))
		return hex.EncodeToString(h.Sum(nil))
	}
	message := func(ts, payload, signature string) string {
		return fmt.Sprintf(`{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":%s,"signature":"%s"}`, device, ts, id, payload, signature)
	}
	// signed is a message with payload, of which text was signed in the payload's place.
	signed := func(payload, text string) string { return message(ts, payload, mac(secret, device+ts+id+text)) }
	joined := func(text string) string { return message(ts, `{"a":1}`, mac(secret, text)) }
	keyed := func(key string) string { return message(ts, `{"a":1}`, mac(key, device+ts+id+`{"a":1}`)) }
	good := mac(secret, device+ts+id+`{"a":1}`)
	raw, _ := hex.DecodeString(good)
	decoded, _ := hex.DecodeString(secret)
	other := func(ts, id, signature string) string {
		return fmt.Sprintf(`{"device_id":"%s","timestamp":%s,"message_id":%s,"payload":{"a":1},"signature":%s}`, device, ts, id, signature)
	}
	sum512 := hmac.New(sha512.New, []byte(secret))
	sum512.Write([]byte(device + ts + id + `{"a":1}`))
	plain := sha256.Sum256([]byte(secret + device + ts + id + `{"a":1}`))
	for name, c := range map[string]struct{ message, want string }{
		"good":                            {signed(`{"a":1}`, `{"a":1}`), "Good: signed by Sensor_1"},
		"signature in upper case is good": {message(ts, `{"a":1}`, strings.ToUpper(good)), "Good: signed by"},
		"signed compact and sorted, sent with blanks is good": {signed(`{"a": 1, "b": 2}`, `{"a":1,"b":2}`), "Good: signed by"},

		"milliseconds, signed so":           {message(ts+"123", "1", mac(secret, device+ts+"123"+id+"1")), "timestamp is in milliseconds, so the message is refused as from the future: sign and send seconds since 1970 (1727712000)"},
		"microseconds, signed so":           {message(ts+"123456", "1", mac(secret, device+ts+"123456"+id+"1")), "timestamp is in microseconds"},
		"nanoseconds, signed so":            {message(ts+"123456789", "1", mac(secret, device+ts+"123456789"+id+"1")), "timestamp is in nanoseconds"},
		"milliseconds sent, seconds signed": {message(ts+"123", "1", mac(secret, device+ts+id+"1")), "a timestamp in seconds, but it was sent in milliseconds: send seconds too"},
		"milliseconds signed":               {joined(device + ts + "000" + id + `{"a":1}`), "a timestamp in milliseconds: sign and send seconds"},
		"fraction signed":                   {joined(device + ts + ".0" + id + `{"a":1}`), "a timestamp with a fraction"},
		"date signed":                       {joined(device + "2024-09-30T16:00:00Z" + id + `{"a":1}`), "the timestamp as a date: sign the digits"},
		"timestamp as a string":             {other(`"`+ts+`"`, `"`+id+`"`, `"`+good+`"`), "timestamp is a string; send the number without quotes"},
		"timestamp as a string, the rest":   {other(`"`+ts+`"`, `"`+id+`"`, `"`+good+`"`), "With that corrected:\nGood: signed by"},
		"timestamp as a float":              {other(ts+".25", `"`+id+`"`, `"`+good+`"`), "timestamp is a number with a fraction or an exponent; sign and send whole seconds"},
		"timestamp as a float in a string":  {other(`"`+ts+`.25"`, `"`+id+`"`, `"`+good+`"`), "timestamp is a string; a number with a fraction"},
		"timestamp as a date":               {other(`"2024-09-30T16:00:00Z"`, `"`+id+`"`, `"`+good+`"`), "timestamp is a date; sign and send the seconds since 1970"},

		"blanks signed":            {signed(`{"a":1,"b":[1,2]}`, `{"a": 1, "b": [1, 2]}`), "the payload with a blank behind each comma and colon, as Python writes it by default: send that very text, or sign it without blanks"},
		"blanks and sorted signed": {signed(`{"b":1,"a":2}`, `{"a": 2, "b": 1}`), "its members sorted"},
		"blanks sent":              {signed(`{"b": 1, "a": 2}`, `{"b":1,"a":2}`), "the payload without blanks, in the order in which it was sent, but it was sent with blanks"},
		"indented":                 {signed(`{"b":1,"a":[]}`, "{\n  \"b\": 1,\n  \"a\": []\n}"), "the payload with indentation"},
		"line end":                 {signed(`{"a":1}`, `{"a":1}`+"\n"), "a line end behind the payload: leave it out"},
		"22.0 as 22":               {signed(`{"t":22.0}`, `{"t":22}`), "numbers written without a fraction of zero (22.0 as 22)"},
		"22 as 22.0":               {signed(`{"t":22}`, `{"t":22.0}`), "whole numbers written with a fraction (22 as 22.0)"},
		"22.5 as 22.50":            {signed(`{"n":1,"t":22.5}`, `{"n":1,"t":22.50}`), "numbers written with 2 decimals"},
		"22.500000":                {signed(`{"n":1,"t":22.5}`, `{"n":1,"t":22.500000}`), "numbers written with 6 decimals"},
		"1e3 as 1000.0":            {signed(`{"t":1e3}`, `{"t":1000.0}`), "numbers written"},
		"1E3 as 1000":              {signed(`{"t":1E3}`, `{"t":1000}`), "numbers written"},
		"%g":                       {signed(`{"t":0.12345678}`, `{"t":0.123457}`), "numbers written"},
		"ensure_ascii signed":      {signed(`{"o":"Zürich 😀"}`, `{"o":"Z\u00fcrich \ud83d\ude00"}`), "ensure_ascii"},
		"ensure_ascii sent":        {signed(`{"o":"Z\u00fcrich"}`, `{"o":"Zürich"}`), "ensure_ascii"},
		"as for HTML":              {signed(`{"o":"<b>"}`, `{"o":"\u003cb\u003e"}`), "as Go writes them"},
		"slashes":                  {signed(`{"o":"a/b"}`, `{"o":"a\/b"}`), "as PHP writes it"},
		"another order":            {signed(`{"a":1,"c":2,"b":3}`, `{"c":2,"a":1,"b":3}`), "the payload with its members in another order than they were sent in: sign the members in the order"},
		"another order, inside":    {signed(`{"x":{"a":1,"c":2,"b":3}}`, `{"x":{"c":2,"a":1,"b":3}}`), "another order"},
		"sorted as numbers":        {signed(`{"2":1,"10":2,"b":{"z":1,"y":2}}`, `{"2":1,"10":2,"b":{"y":2,"z":1}}`), "sorted as numbers"},
		"str()":                    {signed(`{"a":true}`, `{'a': True}`), "as Python's str() writes it: sign what json.dumps returned"},
		"a string of JSON":         {signed(`"{\"a\":1}"`, `{"a":1}`), "the JSON in the payload's string: send the payload as a value, not as a string that holds JSON"},
		"a string of JSON, good":   {signed(`"{\"a\":1}"`, `"{\"a\":1}"`), "Note: the payload is a string that holds JSON"},
		"signed as a string":       {signed(`{"a":1}`, `"{\"a\":1}"`), "the payload as a JSON string"},

		"22.50 as 22.5":          {signed(`{"t":22.50}`, `{"t":22.5}`), "without zeros at its end (22.50 as 22.5)"},
		"JavaScript's numbers":   {signed(`{"t":12345678901234567890}`, `{"t":12345678901234567000}`), "64-bit floating point"},
		"C's float":              {signed(`{"t":22.3}`, `{"t":22.299999237060547}`), "32-bit floating point"},
		"without null":           {signed(`{"a":1,"b":null}`, `{"a":1}`), "without the members that are null"},
		"a blank behind colons":  {signed(`{"a":1,"b":2}`, `{"a": 1,"b": 2}`), "with blanks at its commas or colons"},
		"indented, CRLF":         {signed(`{"a":1}`, "{\r\n  \"a\": 1\r\n}"), "the payload with indentation"},
		"NUL":                    {signed(`{"a":1}`, "{\"a\":1}\x00"), "a NUL byte behind the payload"},
		"cut off":                {signed(`{"a":"`+strings.Repeat("x", 300)+`"}`, `{"a":"`+strings.Repeat("x", 100)), "the first 160 of 362 bytes: make the buffer larger"},
		"the milliseconds":       {joined(device + ts + "123" + id + `{"a":1}`), "a timestamp in milliseconds: sign and send seconds"},
		"whole, signature null":  {joined(fmt.Sprintf(`{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":{"a":1},"signature":null}`, device, ts, id)), "the whole object"},
		"NUL behind the message": {signed(`{"a":1}`, `{"a":1}`) + "\x00", "the message ends with a NUL byte; publish strlen bytes"},

		"bar":                    {joined(device + "|" + ts + "|" + id + `|{"a":1}`), `"|" between the parts: join them with nothing between`},
		"blank":                  {joined(device + " " + ts + " " + id + ` {"a":1}`), "a blank between the parts"},
		"comma":                  {joined(device + "," + ts + "," + id + `,{"a":1}`), `"," between the parts`},
		"payload alone":          {joined(`{"a":1}`), "only the payload: sign device_id, timestamp, message_id and payload"},
		"another order of parts": {joined(device + id + ts + `{"a":1}`), "message_id before timestamp"},
		"id in upper case":       {joined(device + ts + strings.ToUpper(id) + `{"a":1}`), "message_id in upper case: sign the very characters"},
		"device in lower case":   {joined(strings.ToLower(device) + ts + id + `{"a":1}`), "device_id in lower case"},
		"without hyphens":        {joined(device + ts + strings.ReplaceAll(id, "-", "") + `{"a":1}`), "message_id without its hyphens"},
		"whole":                  {joined(fmt.Sprintf(`{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":{"a":1}}`, device, ts, id)), "the whole object: sign device_id, timestamp, message_id and payload, joined"},
		"whole, with blanks":     {joined(fmt.Sprintf(`{"device_id": "%s", "timestamp": %s, "message_id": "%s", "payload": {"a": 1}}`, device, ts, id)), "the whole object"},
		"whole, sorted":          {joined(fmt.Sprintf(`{"device_id":"%s","message_id":"%s","payload":{"a":1},"timestamp":%s}`, device, id, ts)), "the whole object"},
		"whole, another order":   {joined(fmt.Sprintf(`{"payload":{"a":1},"device_id":"%s","timestamp":%s,"message_id":"%s"}`, device, ts, id)), "the whole object"},

		"secret decoded":       {keyed(string(decoded)), "the secret decoded from hexadecimal, where its digits themselves are the key: its characters themselves are the key"},
		"secret with newline":  {keyed(secret + "\n"), "a line end behind the secret: strip the line end"},
		"secret with CRLF":     {keyed(secret + "\r\n"), "a line end behind the secret"},
		"secret with a mark":   {keyed("\ufeff" + secret), "a byte order mark before the secret"},
		"secret in upper case": {keyed(strings.ToUpper(secret)), "the secret in upper case"},
		"secret cut":           {keyed(secret[:31]), "the secret's first 31 characters"},
		"blanks and newline":   {message(ts, `{"a":1}`, mac(secret+"\n", device+ts+id+`{"a": 1}`)), "as Python writes it by default and a line end behind the secret"},
		"no HMAC":              {message(ts, `{"a":1}`, hex.EncodeToString(plain[:])), "SHA-256 over the secret and the text: use HMAC"},
		"HMAC turned":          {message(ts, `{"a":1}`, mac(device+ts+id+`{"a":1}`, secret)), "HMAC with its key and its message exchanged"},
		"base64":               {message(ts, `{"a":1}`, base64.StdEncoding.EncodeToString(raw)), "signature is in base64; write 64 hexadecimal digits.\nWith that corrected:\nGood"},
		"base64 for URLs":      {message(ts, `{"a":1}`, base64.RawURLEncoding.EncodeToString(raw)), "signature is in base64"},
		"base64 of digits":     {message(ts, `{"a":1}`, base64.StdEncoding.EncodeToString([]byte(good))), "signature is base64 of the hexadecimal digits"},
		"prefix":               {message(ts, `{"a":1}`, "sha256="+good), `signature begins with "sha256="; write 64 hexadecimal digits only`},
		"SHA-512":              {message(ts, `{"a":1}`, hex.EncodeToString(sum512.Sum(nil))), "signature is as long as one of HMAC-SHA-512; use HMAC-SHA256"},
		"UUID without hyphens": {other(ts, `"`+strings.ReplaceAll(id, "-", "")+`"`, `"`+good+`"`), "message_id is a UUID in another form; write its 36 characters"},
		"other names":          {strings.Replace(strings.Replace(signed(`{"a":1}`, `{"a":1}`), "device_id", "deviceId", 1), "message_id", "messageId", 1), `the member "deviceId" is to be called "device_id"`},
		"a member beside":      {strings.Replace(signed(`{"a":1}`, `{"a":1}`), `"payload"`, `"temp":1,"payload"`, 1), `a member "temp" in addition to the five`},
		"encoded twice":        {strconv.Quote(signed(`{"a":1}`, `{"a":1}`)), "the whole message is a JSON string that holds the message"},
		"a byte order mark":    {"\ufeff" + signed(`{"a":1}`, `{"a":1}`), "the message begins with a byte order mark"},
		"UTF-16":               {inUTF16(signed(`{"a":1}`, `{"a":1}`)), "or is UTF-16; publish UTF-8"},
	} {
		file := filepath.Join(t.TempDir(), "secret")
		writeFile(t, file, secret+"\n")
		got := bouncerctl(t, c.message, "verify", "--secret-file", file)
		if !strings.Contains(got.stdout, c.want) {
			t.Errorf("%s: no %q in\n%s%s", name, c.want, got.stdout, got.stderr)
		}
		if good := strings.HasPrefix(c.want, "Good") || strings.HasPrefix(c.want, "Note"); good != (got.code == 0) {
			t.Errorf("%s: exit code %d: %s", name, got.code, got.stdout)
		}
	}
	// Clocks that count from elsewhere.
	now := time.Now().Unix()
	for count, want := range map[int64]string{
		now + 2_208_988_800:                 fmt.Sprintf("in seconds since 1900, as NTP has them, so the message is refused as from the future: sign and send seconds since 1970 (%d)", now),
		(now + 11_644_473_600) * 10_000_000: fmt.Sprintf("FILETIME has them, so the message is refused as from the future: sign and send seconds since 1970 (%d)", now),
		now*10_000_000 + 621355968000000000: fmt.Sprintf(".NET's DateTime has them, so the message is refused as from the future: sign and send seconds since 1970 (%d)", now),
		now - 946_684_800:                   "Note: the timestamp counts from 2000",
		now + 2*3600 + 60:                   "Note: the timestamp is 2 hours ahead of this machine's clock",
	} {
		file := filepath.Join(t.TempDir(), "secret")
		writeFile(t, file, secret)
		stamp := fmt.Sprint(count)
		got := bouncerctl(t, message(stamp, `{"a":1}`, mac(secret, device+stamp+id+`{"a":1}`)), "verify", "--secret-file", file)
		if !strings.Contains(got.stdout, want) || strings.HasPrefix(want, "Note") != (got.code == 0) {
			t.Errorf("%d: %d, %s", count, got.code, got.stdout)
		}
	}
	// What is none of them is not named.
	file := filepath.Join(t.TempDir(), "secret")
	writeFile(t, file, secret)
	if got := bouncerctl(t, message(ts, `{"a":1}`, mac("another", device+ts+id+`{"a":1}`)), "verify", "--secret-file", file); strings.Contains(got.stdout, "It is that of") || !strings.Contains(got.stdout, "None of the usual mistakes gives it") || got.code != 1 {
		t.Error(got.stdout)
	}
}
