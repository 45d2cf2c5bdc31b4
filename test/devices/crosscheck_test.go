package devices

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

var seed = flag.Uint64("seed", 0, "of the documents of the cross-check; 0: another one each time")

// documents is how many the libraries sign.
const documents = 1000

// checkTime bounds how long one library may take for one list of requests.
const checkTime = 60 * time.Second

// A known is an element of "devices" in the vectors: with Raw as it is there.
type known struct {
	ID                string `json:"device_id"`
	Algorithm         string
	Secrets           []string
	PublicKey         string `json:"public_key"`
	CommandPrivateKey string `json:"command_private_key"`
	raw               json.RawMessage
}

func knownDevices(t *testing.T) (devices []known) {
	t.Helper()
	text, err := os.ReadFile("../../device/vectors/device-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Devices []json.RawMessage }
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, raw := range file.Devices {
		var compact bytes.Buffer
		d := known{}
		if err := json.Compact(&compact, raw); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &d); err != nil {
			t.Fatal(err)
		}
		d.raw = compact.Bytes()
		devices = append(devices, d)
	}
	if len(devices) != 3 {
		t.Fatalf("%d devices, want one for each algorithm", len(devices))
	}
	return devices
}

// A question is a request to a cross-checker.
type question struct {
	Do        string          `json:"do"`
	Device    json.RawMessage `json:"device"`
	Timestamp int64           `json:"timestamp,omitempty"`
	MessageID string          `json:"message_id,omitempty"`
	Payload   *string         `json:"payload,omitempty"`
	Message   string          `json:"message,omitempty"`
	Now       *int64          `json:"now,omitempty"`
}

// A verdict is the answer to one.
type verdict struct {
	Message string
	Error   string
	Result  string
	ID      string
	Command string
	Expires int64
}

// ask has every library answer all questions.
func ask(t *testing.T, questions []question) map[string][]verdict {
	t.Helper()
	var input bytes.Buffer
	encoder := json.NewEncoder(&input)
	encoder.SetEscapeHTML(false)
	for _, q := range questions {
		if err := encoder.Encode(q); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var running sync.WaitGroup
	answers := map[string][]verdict{}
	for _, l := range libraries() {
		running.Go(func() {
			begin := time.Now()
			all, err := answersOf(l, input.Bytes(), len(questions))
			if err != nil {
				t.Errorf("the cross-checker of %s: %v", l.name, err)
			}
			t.Logf("%s: %d answers in %v", l.name, len(all), time.Since(begin).Round(time.Millisecond))
			mu.Lock()
			defer mu.Unlock()
			answers[l.name] = all
		})
	}
	running.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return answers
}

func answersOf(l library, input []byte, n int) (answers []verdict, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.crosscheck[0], l.crosscheck[1:]...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var v verdict
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return nil, fmt.Errorf("answer %d is %.200q: %w", len(answers)+1, lines.Text(), err)
		}
		answers = append(answers, v)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, stderr.String())
	}
	if len(answers) != n {
		return nil, fmt.Errorf("%d answers to %d questions\n%s", len(answers), n, stderr.String())
	}
	return answers, nil
}

func newGenerator(t *testing.T) generator {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	return generator{rand.New(rand.NewPCG(s, 0))}
}

func (g generator) uuid(version int) string {
	id := make([]byte, 16)
	for i := range id {
		id[i] = byte(g.IntN(256))
	}
	id[6] = byte(version<<4) | id[6]&0xf
	text := fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:])
	if g.IntN(4) == 0 {
		return strings.ToUpper(text)
	}
	return text
}

// gateway is what the gateway says of a message: of the payload as sent, and in either form.
func gateway(t *testing.T, d known, message string) (asSent, either string) {
	t.Helper()
	e, err := new(envelope.Decoder).Decode([]byte(message))
	if err != nil {
		return "malformed", "malformed"
	}
	asSent, either = "bad_signature", "bad_signature"
	text := e.AppendSigned(nil, false)
	for _, s := range d.Secrets {
		if envelope.NewHMAC([]byte(s)).IsOver(e, text) {
			asSent = "good"
		}
		if envelope.NewVerifier([]byte(s)).Verify(e) {
			either = "good"
		}
	}
	if d.Secrets == nil {
		key, err := publickey.ParsePEM([]byte(d.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		if key.Verify(text, e.Signature) {
			asSent = "good"
		}
		if envelope.NewKeyVerifier(key).Verify(e) {
			either = "good"
		}
	}
	return asSent, either
}

// strangeTime reports whether a message has a timestamp that no device signs. The gateway reads it, to refuse the message as stale or
// future.
func strangeTime(message string) bool {
	e, err := new(envelope.Decoder).Decode([]byte(message))
	if err != nil {
		return false
	}
	text := e.AppendSigned(nil, false)
	return e.Timestamp < 0 || e.Timestamp > 1<<53-1 || text[len(e.DeviceID)] == '-'
}

// TestCrossCheck: each library signs random documents, and every other one and the gateway verify what it has signed; all agree on
// what is no document, and on messages that were changed.
func TestCrossCheck(t *testing.T) {
	g, devices := newGenerator(t), knownDevices(t)
	var signing []question
	var of []known
	for i := range documents {
		d, payload := devices[i%len(devices)], g.payload()
		of = append(of, d)
		signing = append(signing, question{
			Do: "sign", Device: d.raw, Timestamp: g.Int64N(1 << 53), MessageID: g.uuid(1 + g.IntN(7)), Payload: &payload,
		})
	}
	signed := ask(t, signing)

	var verifying []question
	var about []known
	var whose []string
	seen := map[string]bool{}
	add := func(d known, message, who string) {
		if !seen[message] {
			seen[message] = true
			verifying, about, whose = append(verifying, question{Do: "verify", Device: d.raw, Message: message}), append(about, d), append(whose, who)
		}
	}
	refused := 0
	for i, q := range signing {
		first := signed["go"][i]
		if first.Error != "" {
			refused++
		}
		for name, answers := range signed {
			v := answers[i]
			if v.Error != first.Error || (v.Message == "") != (first.Message == "") || of[i].Algorithm != p256 && v.Message != first.Message {
				t.Errorf("%s and go disagree on signing %q with %s:\n%+v\n%+v", name, *q.Payload, of[i].ID, v, first)
			}
			if v.Message != "" {
				add(of[i], v.Message, name)
			}
		}
		if first.Message != "" {
			for range 2 {
				add(of[i], g.mutated(first.Message), "")
			}
		}
	}
	t.Logf("%d of %d documents are refused", refused, documents)
	if refused < documents/20 || refused > documents/2 {
		t.Errorf("%d of %d documents are refused, which is not what the generator is for", refused, documents)
	}
	tally := map[string]int{}
	verified := ask(t, verifying)
	for i, q := range verifying {
		asSent, either := gateway(t, about[i], q.Message)
		if whose[i] != "" && (asSent != "good" || either != "good") {
			t.Errorf("the gateway finds %s, signed by %s: %q", asSent, whose[i], q.Message)
		}
		if whose[i] == "" {
			tally[asSent]++
		}
		for name, answers := range verified {
			if asSent == "bad_signature" && answers[i].Result == "malformed" && strangeTime(q.Message) {
				continue // a library may read such a message as it reads a command
			}
			if answers[i].Result != asSent {
				t.Errorf("%s finds %s, the gateway %s: %q, signed by %q for %s", name, answers[i].Result, asSent, q.Message, whose[i], about[i].ID)
			}
		}
	}
	t.Logf("%d messages; of the changed ones %v", len(verifying), tally)
	if tally["malformed"] < 100 || tally["bad_signature"] < 100 {
		t.Errorf("too few of a kind: %v", tally)
	}
}

// signer makes what the gateway makes.
func (d known) signer(t *testing.T) envelope.Signer {
	t.Helper()
	if d.Secrets != nil {
		return envelope.NewSigner([]byte(d.Secrets[0]))
	}
	s, err := publickey.ReadSigner([]byte(d.CommandPrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCrossCheckCommands: all libraries agree on random commands, and on those that were changed.
func TestCrossCheckCommands(t *testing.T) {
	g, devices := newGenerator(t), knownDevices(t)
	signers := map[string]envelope.Signer{}
	for _, d := range devices {
		signers[d.ID] = d.signer(t)
	}
	var questions []question
	var expected []string
	for i := range documents / 2 {
		d := devices[i%len(devices)]
		expires, clock := g.Int64N(1<<53), g.Int64N(1<<53)
		body, want := g.value(g.IntN(66)), "good"
		command, until := `"command"`+g.space()+":"+g.space()+body, fmt.Sprintf(`"expires"%s:%s%d`, g.space(), g.space(), expires)
		if g.IntN(2) == 0 {
			command, until = until, command
		}
		payload := "{" + g.space() + command + g.space() + "," + g.space() + until + g.space() + "}"
		if _, err := envelope.AppendCanonical(nil, []byte(payload)); err != nil {
			want = "malformed"
		}
		q := question{Do: "command", Device: d.raw}
		switch g.IntN(4) {
		case 0:
			clock = expires + g.Int64N(3) - 1
			fallthrough
		case 1:
			q.Now = &clock
			if clock >= expires && want == "good" {
				want = "expired"
			}
		}
		version := 8
		if g.IntN(10) == 0 {
			if version, want = g.IntN(8), "malformed"; version == 0 {
				version = 9
			}
		}
		if g.IntN(5) == 0 { // signed, and not as a command is
			payload, want = g.mutated(payload), ""
		}
		id, seconds := g.uuid(version), fmt.Sprint(g.Int64N(1<<53))
		signature, err := signers[d.ID].Signature([]byte(d.ID + seconds + id + payload))
		if err != nil {
			t.Fatal(err)
		}
		q.Message = fmt.Sprintf(`{"device_id":"%s","timestamp":%s,"message_id":"%s","payload":%s,"signature":"%s"}`, d.ID, seconds, id, payload, hex.EncodeToString(signature))
		questions, expected = append(questions, q), append(expected, want)
		for range 3 {
			changed := q
			changed.Message = g.mutated(q.Message)
			questions, expected = append(questions, changed), append(expected, "")
		}
	}
	answers, tally := ask(t, questions), map[string]int{}
	for i, q := range questions {
		first := answers["go"][i]
		tally[first.Result]++
		if expected[i] != "" && first.Result != expected[i] {
			t.Errorf("go finds %+v, want %s: %q", first, expected[i], q.Message)
		}
		for name, all := range answers {
			if all[i] != first && !(eitherWay(all[i], first) && nameTwice(q.Message)) {
				t.Errorf("%s and go disagree:\n%+v\n%+v\non %q with the clock %v", name, all[i], first, q.Message, q.Now)
			}
		}
	}
	t.Logf("%d commands: %v", len(questions), tally)
	for _, result := range []string{"good", "malformed", "foreign", "forged", "expired"} {
		if tally[result] < 5 {
			t.Errorf("%d commands are %s, of %d", tally[result], result, len(questions))
		}
	}
}

// eitherWay reports whether two answers may differ where a name occurs twice in the payload and the signature is not good.
func eitherWay(a, b verdict) bool {
	results := slices.Sorted(maps.Keys(map[string]bool{a.Result: true, b.Result: true}))
	return slices.Equal(results, []string{"forged", "malformed"})
}

// nameTwice reports whether the only thing that is wrong with the JSON of a message is a name that occurs twice.
func nameTwice(message string) bool {
	v := jsontext.Value(message)
	return !v.IsValid() && v.IsValid(jsontext.AllowDuplicateNames(true))
}
