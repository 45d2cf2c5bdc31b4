package device

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

// vectorText is a string, hexadecimal digits, or a long text: see the comment in the file.
type vectorText []byte

func (v *vectorText) UnmarshalJSON(b []byte) error {
	var t struct {
		Text *string
		Hex  string
		Long *struct {
			Before string
			Times  int `json:"x_times"`
			After  string
		}
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return err
	}
	switch {
	case t.Text != nil:
		*v = []byte(*t.Text)
	case t.Long != nil:
		*v = []byte(t.Long.Before + strings.Repeat("x", t.Long.Times) + t.Long.After)
	default:
		text, err := hex.DecodeString(t.Hex)
		*v = text
		return err
	}
	return nil
}

type vectorDevice struct {
	ID          string `json:"device_id"`
	Secrets     []string
	PrivateKey  string   `json:"private_key"`
	PublicKey   string   `json:"public_key"`
	CommandKeys []string `json:"command_keys"`
}

func (d vectorDevice) credential(t *testing.T) *Credential {
	t.Helper()
	var c *Credential
	var err error
	if d.Secrets != nil {
		var secrets [][]byte
		for _, s := range d.Secrets {
			secrets = append(secrets, []byte(s))
		}
		c, err = Secret(secrets...)
	} else {
		c, err = ReadPrivateKey([]byte(d.PrivateKey), []byte(strings.Join(d.CommandKeys, "")))
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type vectorReceived struct {
	Name, Device, Expect, ID string
	Message, Command         vectorText
	Now                      *int64
	Expires                  int64
}

type vectorFile struct {
	Devices []vectorDevice
	Sign    []struct {
		Name, Device, Error string
		Timestamp           int64
		MessageID           string `json:"message_id"`
		Payload, Message    vectorText
	}
	Messages, Commands []vectorReceived
	Memory             []struct {
		Name     string
		Capacity int
		Steps    []struct {
			ID, Expect string
			Expires    int64
		}
	}
	Answers []struct {
		CommandID       string `json:"command_id"`
		Status          Status
		Result, Payload vectorText
	}
	Notices []struct {
		Name       string
		Message    vectorText
		Good       bool
		MessageID  string `json:"message_id"`
		Reason     string
		ServerTime int64 `json:"server_time"`
	}
}

func vectors(t *testing.T) (v vectorFile) {
	t.Helper()
	text, err := os.ReadFile("../vectors/device-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Devices) < 3 || len(v.Sign) < 100 || len(v.Messages) < 300 || len(v.Commands) < 300 || len(v.Memory) < 6 || len(v.Answers) < 13 || len(v.Notices) < 15 {
		t.Fatal("vectors are missing")
	}
	return v
}

// verify checks a message as the gateway does, but for the payload as sent alone.
func verify(d vectorDevice, message []byte) string {
	e, err := new(envelope.Decoder).Decode(message)
	if err != nil {
		return "malformed"
	}
	if d.Secrets != nil {
		for _, s := range d.Secrets {
			if envelope.NewHMAC([]byte(s)).IsOver(e, e.AppendSigned(nil, false)) {
				return "good"
			}
		}
		return "bad_signature"
	}
	key, err := publickey.ParsePEM([]byte(d.PublicKey))
	if err == nil && key.Verify(e.AppendSigned(nil, false), e.Signature) {
		return "good"
	}
	return "bad_signature"
}

// TestVectorsSign: what is signed, to the byte where the algorithm makes one signature only, and what is not.
func TestVectorsSign(t *testing.T) {
	v := vectors(t)
	devices := map[string]vectorDevice{}
	for _, d := range v.Devices {
		devices[d.ID] = d
	}
	for _, s := range v.Sign {
		d, known := devices[s.Device]
		if !known {
			d = v.Devices[0] // the id is what is wrong
		}
		got, err := Sign(d.credential(t), Message{DeviceID: s.Device, Timestamp: s.Timestamp, MessageID: s.MessageID, Payload: s.Payload})
		switch {
		case string(ReasonOf(err)) != s.Error || (err != nil) != (s.Error != ""):
			t.Errorf("%s: %v, want %q", s.Name, err, s.Error)
		case s.Message != nil && !bytes.Equal(got, s.Message):
			t.Errorf("%s: %s\nwant %s", s.Name, got, s.Message)
		case err == nil && verify(d, got) != "good":
			t.Errorf("%s: %s is not good", s.Name, got)
		}
	}
}

func TestVectorsCommands(t *testing.T) {
	v := vectors(t)
	for _, d := range v.Devices {
		c := d.credential(t)
		for _, m := range v.Commands {
			if m.Device != d.ID {
				continue
			}
			var now time.Time
			if m.Now != nil {
				now = time.Unix(*m.Now, 0)
			}
			got, err := VerifyCommand(c, d.ID, m.Message, now)
			if m.Expect != "good" {
				if string(ReasonOf(err)) != m.Expect || got.ID != "" || got.Body != nil {
					t.Errorf("%s: %+v %v, want %s", m.Name, got, err, m.Expect)
				}
				continue
			}
			if err != nil || got.ID != m.ID || !bytes.Equal(got.Body, m.Command) || got.Expires != m.Expires {
				t.Errorf("%s: %+v, %v", m.Name, got, err)
			}
		}
	}
}

func TestVectorsMemory(t *testing.T) {
	for _, v := range vectors(t).Memory {
		m := NewCommandMemory(v.Capacity)
		for i, s := range v.Steps {
			if got := m.Take(s.ID, s.Expires); string(got) != s.Expect {
				t.Errorf("%s, step %d: %s, want %s", v.Name, i+1, got, s.Expect)
			}
			if len(m.table) > v.Capacity {
				t.Errorf("%s, step %d: %d commands", v.Name, i+1, len(m.table))
			}
		}
	}
}

func TestVectorsAnswers(t *testing.T) {
	for _, a := range vectors(t).Answers {
		got, err := Answer(a.CommandID, a.Status, a.Result)
		if err != nil || !bytes.Equal(got, a.Payload) {
			t.Errorf("%s %s %s: %s, %v", a.CommandID, a.Status, a.Result, got, err)
		}
	}
}

func TestVectorsNotices(t *testing.T) {
	for _, n := range vectors(t).Notices {
		got, err := ReadNotice(n.Message)
		if want := (Notice{n.MessageID, n.Reason, n.ServerTime}); (err == nil) != n.Good || n.Good && got != want || !n.Good && got.Reason != "" && err == nil {
			t.Errorf("%s: %+v, %v", n.Name, got, err)
		}
	}
}
