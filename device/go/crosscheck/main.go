// Crosscheck signs and verifies what a test gives it, line by line: see test/devices/doc.go.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	device "mosquitto-bouncer/device/go"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
)

// maxLine bounds a request, in bytes.
const maxLine = 16 << 20

type request struct {
	Do        string
	Device    identity
	Timestamp int64
	MessageID string `json:"message_id"`
	Payload   string
	Message   string
	Now       *int64
}

// An identity is an element of "devices" in device-v1.json.
type identity struct {
	ID          string `json:"device_id"`
	Secrets     []string
	PrivateKey  string   `json:"private_key"`
	PublicKey   string   `json:"public_key"`
	CommandKeys []string `json:"command_keys"`
}

func (d identity) credential() (*device.Credential, error) {
	if d.Secrets == nil {
		return device.ReadPrivateKey([]byte(d.PrivateKey), []byte(strings.Join(d.CommandKeys, "")))
	}
	var secrets [][]byte
	for _, s := range d.Secrets {
		secrets = append(secrets, []byte(s))
	}
	return device.Secret(secrets...)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "crosscheck:", err)
		os.Exit(1)
	}
}

func run() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLine)
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return err
		}
		answer, err := r.answer()
		if err != nil {
			return err
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (r request) answer() (map[string]any, error) {
	credential, err := r.Device.credential()
	if err != nil {
		return nil, err
	}
	switch r.Do {
	case "sign":
		message, err := device.Sign(credential, device.Message{
			DeviceID: r.Device.ID, Timestamp: r.Timestamp, MessageID: r.MessageID, Payload: []byte(r.Payload),
		})
		if reason := device.ReasonOf(err); reason != "" {
			return map[string]any{"error": reason}, nil
		}
		return map[string]any{"message": string(message)}, err
	case "verify":
		result, err := r.verify()
		return map[string]any{"result": result}, err
	case "command":
		var now time.Time
		if r.Now != nil {
			now = time.Unix(*r.Now, 0)
		}
		c, err := device.VerifyCommand(credential, r.Device.ID, []byte(r.Message), now)
		if err != nil {
			return map[string]any{"result": device.ReasonOf(err)}, nil
		}
		return map[string]any{"result": "good", "id": c.ID, "command": string(c.Body), "expires": c.Expires}, nil
	}
	return nil, fmt.Errorf("%q is not known", r.Do)
}

// verify does what the gateway does, for the payload as sent.
func (r request) verify() (string, error) {
	e, err := new(envelope.Decoder).Decode([]byte(r.Message))
	if err != nil {
		return "malformed", nil
	}
	text := e.AppendSigned(nil, false)
	for _, s := range r.Device.Secrets {
		if envelope.NewHMAC([]byte(s)).IsOver(e, text) {
			return "good", nil
		}
	}
	if r.Device.Secrets == nil {
		key, err := publickey.ParsePEM([]byte(r.Device.PublicKey))
		if err != nil {
			return "", err
		}
		if key.Verify(text, e.Signature) {
			return "good", nil
		}
	}
	return "bad_signature", nil
}
