package test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// signedBy returns which of the keys a command that reached a device is signed with, by their places, -1: none.
func signedBy(g *harness.Gateway, message []byte, keys []*publickey.Key) int {
	g.Helper()
	e, err := new(envelope.Decoder).Decode(message)
	g.Must(err)
	for i, k := range keys {
		if envelope.NewKeyVerifier(k).Verify(e) {
			return i
		}
	}
	return -1
}

// exported returns the public keys that "bouncerctl command-key export" prints.
func exported(g *harness.Gateway, program, algorithm string) (keys []*publickey.Key) {
	g.Helper()
	text := g.Bouncerctl(program, "command-key", "export", "--algorithm", algorithm)
	for block := range strings.SplitAfterSeq(text, "-----END PUBLIC KEY-----\n") {
		if block != "" {
			key, err := publickey.ParsePEM([]byte(block))
			g.Must(err)
			keys = append(keys, key)
		}
	}
	return keys
}

// TestCommandKeys: a device with a public key gets commands that are signed with the gateway's key of its own algorithm, and
// answers them; another algorithm when its new key has another. A rotation with overlap changes nothing before its time; with
// --now, what has no answer yet is sent again, signed with the new key. The device's own key, the gateway's for the other algorithm and a
// stolen database sign no command.
func TestCommandKeys(t *testing.T) {
	program := harness.BuildBouncerctl(t)
	g := harness.New(t, broker.Options{Devices: []string{"sensor_001"}, HTTP: true})
	set, err := (*commandkey.Set)(nil).With(time.Now(), time.Now(), commandkey.Algorithms()...)
	g.Must(err)
	text, err := set.Encode()
	g.Must(err)
	g.Must(g.Broker.WriteFile("command-keys.toml", text))
	g.Reload(map[string]any{"command.keys_file": g.Broker.Path("command-keys.toml")})

	names := map[publickey.Algorithm]string{publickey.Ed25519: "ed25519", publickey.P256: "p256"}
	for _, a := range commandkey.Algorithms() {
		id := names[a] + "_001"
		d, public := keyed(g, id, a)
		g.Bouncerctl(program, "device", "add", id, "--key", public, "--no-cert", "--out", filepath.Join(t.TempDir(), "bundle"))
		var c *harness.Client
		g.Eventually("the device is registered", func() bool {
			c = g.Connect(d, harness.MQTT5)
			return g.Publish(c, d.DataTopic(), 1, d.Sign("0").Bytes).Accepted()
		})
		g.Must(c.Subscribe(g.Limit(), d.CommandTopic(), 1))
		n := 0 // commands that have come
		next := func() device.Received {
			t.Helper()
			n++
			got, err := c.Inbox().WaitCount(g.Limit(), d.CommandTopic(), n)
			g.Must(err)
			return got[n-1]
		}
		ask := func() string {
			t.Helper()
			answer := g.Ask("POST", "/v1/devices/"+id+"/commands?ttl=10m", `{"set":"interval"}`)
			var made struct{ ID string }
			if err := json.Unmarshal(answer.Text, &made); err != nil || answer.Status != 202 {
				t.Fatalf("%d %s", answer.Status, answer.Text)
			}
			return made.ID
		}
		keys := exported(g, program, names[a])
		if len(keys) != 1 || keys[0].Algorithm() != a {
			t.Fatalf("%v", keys)
		}
		own := d.Signer.(*publickey.Signer).Public()

		command := ask()
		if got := next().Payload; signedBy(g, got, keys) != 0 || signedBy(g, got, []*publickey.Key{own}) != -1 || !strings.Contains(string(got), command) {
			t.Errorf("%s: %s", a, got)
		}
		if ack := g.Publish(c, d.ResultTopic(), 1, d.Answer(command, "succeeded", `1`).Bytes); !ack.Accepted() {
			t.Errorf("the answer: %v", ack)
		}
		g.CommandState(command, "succeeded")

		// The new key is not used before its time, and a device knows both.
		g.Bouncerctl(program, "command-key", "rotate", "--algorithm", names[a])
		g.Reload(nil)
		both := exported(g, program, names[a])
		open := ask()
		if got := next().Payload; len(both) != 2 || signedBy(g, got, both) != 0 || !both[0].Equal(keys[0]) {
			t.Errorf("%s: %d keys, signed by %d", a, len(both), signedBy(g, got, both))
		}

		// Stolen: the new one at once, also for what is sent already.
		time.Sleep(1100 * time.Millisecond) // the same command is not sent twice within a second
		g.Bouncerctl(program, "command-key", "rotate", "--now", "--algorithm", names[a])
		g.Reload(nil)
		after := exported(g, program, names[a])
		if got := next().Payload; len(after) != 1 || signedBy(g, got, after) != 0 || signedBy(g, got, both) != -1 || !strings.Contains(string(got), open) {
			t.Errorf("%s: %d keys: %s", a, len(after), got)
		}
		listed := g.Bouncerctl(program, "command-key", "list")
		if strings.Count(listed, "now") != 2 || !strings.Contains(listed, after[0].Fingerprint().String()) {
			t.Errorf("%s", listed)
		}

		// The device is given a key of the other algorithm; until it uses that, it verifies the old one.
		other := commandkey.Algorithms()[0]
		if other == a {
			other = commandkey.Algorithms()[1]
		}
		replacement, replacementPublic := keyed(g, id, other)
		g.Bouncerctl(program, "device", "rotate", id, "--key", replacementPublic, "--grace", "1h")
		otherKeys := exported(g, program, names[other])
		for {
			got := next().Payload // what is open is sent again
			if signedBy(g, got, otherKeys) == 0 {
				t.Errorf("%s: signed with %s before the device uses it", a, other)
			}
			if g.Publish(c, d.DataTopic(), 1, replacement.Sign("1").Bytes).Accepted() {
				break
			}
		}
		g.Eventually("a command signed with "+string(other), func() bool {
			time.Sleep(time.Second)
			ask()
			return signedBy(g, next().Payload, otherKeys) == 0
		})
		g.Must(c.Close())
	}
	private := strings.SplitN(string(text), "'", 3)[1]
	if g.Broker.Log().Count(0, broker.Contains(private[:20])) > 0 {
		t.Error("the log has a private key")
	}
}
