package bundle

import (
	"encoding/json"
	"strings"

	"mosquitto-bouncer/plugin/config"
)

// A description is device.json, which the libraries for devices read: see device/README.md. Files are named relative to it.
type description struct {
	DeviceID    string `json:"device_id"`
	Host        string `json:"host"`
	Port        int    `json:"port"`
	Algorithm   string `json:"algorithm"`
	CA          string `json:"ca"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	Secret      string `json:"secret,omitempty"`
	SigningKey  string `json:"signing_key,omitempty"`
	CommandKeys string `json:"command_keys,omitempty"`
	Tolerance   int64  `json:"tolerance"` // in seconds
	Topics      topics `json:"topics"`
}

type topics struct {
	Data     string `json:"data"`
	Response string `json:"response,omitempty"`
	Rejected string `json:"rejected,omitempty"`
	Command  string `json:"command"`
}

// hmacName is the algorithm of a device with a secret.
const hmacName = "HMAC-SHA256"

// describe returns device.json.
func (m *Maker) describe(id string, v *readmeValues) ([]byte, error) {
	own := func(topic string) string { return strings.Replace(topic, config.DeviceID, id, 1) }
	d := description{
		DeviceID: id, Host: m.Host, Port: m.Port, Algorithm: hmacName, Secret: "secret",
		CA: "ca.crt", Certificate: "device.crt", Key: "device.key", Tolerance: int64(m.Config.Publish.Tolerance.Seconds()),
		Topics: topics{v.Topic, own(m.Config.Response.Topic), own(m.Config.Rejected.Topic), own(m.Config.Command.Topic)},
	}
	if v.Algorithm != "" {
		d.Algorithm, d.Secret, d.SigningKey = v.Algorithm, "", v.SigningKey
		if v.CommandKeys {
			d.CommandKeys = commandKeysFile
		}
	}
	text, err := json.MarshalIndent(d, "", "  ")
	return append(text, '\n'), err
}
