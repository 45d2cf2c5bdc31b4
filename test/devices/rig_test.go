package devices

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/testkit"
	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
)

const deviceID = "sensor_001"

// The algorithms that a device can have, as in device.json.
const (
	hmacSHA256 = "HMAC-SHA256"
	ed25519    = string(publickey.Ed25519)
	p256       = string(publickey.P256)
)

// A rig is a gateway with one device, whose library is under test, and the network between the two.
type rig struct {
	*harness.Gateway
	library library
	network *proxy
	bundle  string
	state   string

	credential struct {
		file         string // of the bundle
		right, wrong []byte
	}
}

func newRig(t *testing.T, l library, algorithm string) *rig {
	t.Helper()
	options := broker.Options{
		HTTP: true, Persistence: true,
		Settings: map[string]any{"rejected.topic": "device/{device_id}/rejected"},
	}
	if algorithm == hmacSHA256 {
		options.Devices = []string{deviceID}
	}
	r := &rig{Gateway: harness.New(t, options), library: l, bundle: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}
	r.network = newProxy(t, r.Broker.Address(0))
	certificate, key, err := r.Broker.CA().IssueDevice(deviceID, time.Now(), 24*time.Hour)
	r.Must(err)
	description := map[string]any{
		"device_id": deviceID, "host": "127.0.0.1", "port": r.network.port(), "algorithm": algorithm,
		"ca": "ca.crt", "certificate": "device.crt", "key": "device.key", "not_known": map[string]int{"a": 1},
		"topics": map[string]string{
			"data": "device/sensor_001/data", "response": "device/sensor_001/response",
			"rejected": "device/sensor_001/rejected", "command": "device/sensor_001/command",
		},
	}
	r.write("ca.crt", r.Broker.CA().CertPEM())
	r.write("device.crt", certificate)
	r.write("device.key", key)
	c := &r.credential
	if algorithm == hmacSHA256 {
		c.file, c.right, c.wrong = "secret", append(slices.Clone(r.Device(deviceID).Secret), '\n'), []byte("another secret")
		description["secret"] = c.file
	} else {
		private := testkit.PrivateKey(t, algorithm)
		c.file, c.right, c.wrong = "signing.key", r.privatePEM(private), r.privatePEM(testkit.PrivateKey(t, algorithm))
		description["signing_key"] = c.file
		r.register(private)
		description["command_keys"] = "command-keys.pem"
		r.write("command-keys.pem", r.makeCommandKeys(publickey.Algorithm(algorithm)))
	}
	r.write(c.file, c.right)
	text, err := json.Marshal(description)
	r.Must(err)
	r.write("device.json", text)
	return r
}

func (r *rig) write(name string, text []byte) {
	r.Helper()
	r.Must(os.WriteFile(filepath.Join(r.bundle, name), text, 0o600))
}

func (r *rig) privatePEM(private crypto.Signer) []byte {
	r.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	r.Must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// makeCommandKeys gives the gateway keys for commands, and returns the public ones of both algorithms, one after the other, the one that the
// device can use last.
func (r *rig) makeCommandKeys(own publickey.Algorithm) (public []byte) {
	r.Helper()
	set, err := (*commandkey.Set)(nil).With(time.Now(), time.Now(), commandkey.Algorithms()...)
	r.Must(err)
	text, err := set.Encode()
	r.Must(err)
	r.Must(r.Broker.WriteFile("command-keys.toml", text))
	r.Reload(map[string]any{"command.keys_file": r.Broker.Path("command-keys.toml")})
	algorithms := commandkey.Algorithms()
	slices.SortStableFunc(algorithms, func(a, b publickey.Algorithm) int {
		return cmp.Compare(strings.Count(string(a), string(own)), strings.Count(string(b), string(own)))
	})
	for _, a := range algorithms {
		for _, key := range set.Valid(a, time.Now()) {
			der, err := base64.StdEncoding.DecodeString(key.Text())
			r.Must(err)
			public = append(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
		}
	}
	return public
}

// register enters the device with the public key of a private one, and waits until the gateway knows it.
func (r *rig) register(private crypto.Signer) {
	r.Helper()
	key, err := publickey.Of(private.Public())
	r.Must(err)
	mark := r.Broker.Log().Mark()
	store, err := registry.OpenStore(r.Broker.Path("devices.db"))
	r.Must(err)
	r.Must(store.Register(r.Limit(), registry.Registration{ID: deviceID, Key: key}))
	r.Must(store.Close())
	_, err = r.Broker.WaitLog(r.Limit(), mark, broker.Contains("bouncer: devices changed "))
	r.Must(err)
}

// agent starts the agent on the device's state.
func (r *rig) agent() *agent {
	r.Helper()
	return startAgent(r.T, r.library, r.bundle, r.state)
}

// kill ends the broker as SIGKILL does.
func (r *rig) kill() {
	r.Helper()
	r.Must(r.Broker.Process().Kill())
}

// payload is the n-th of a scenario, with white space and a number that only stay as they are if the text is sent as it is.
func payload(n int) string { return fmt.Sprintf(`{ "n": %d, "t": 22.50 }`, n) }

// posted waits until the backend has payloads 0 to n-1.
func (r *rig) posted(n int) {
	r.Helper()
	limit := time.Now().Add(patience)
	for len(r.bodies()) < n {
		if time.Now().After(limit) {
			r.Fatalf("the backend has %d of %d messages", len(r.bodies()), n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// bodies are the numbers of the payloads that the backend has, in their order. A library may write the text of a value in its own
// way.
func (r *rig) bodies() (numbers []int) {
	r.Helper()
	for _, request := range r.Backend.Requests() {
		var p struct {
			N *int
			T *float64
		}
		if err := json.Unmarshal(request.Body, &p); err != nil || p.N == nil || p.T == nil || *p.T != 22.5 || request.Device != deviceID {
			r.Fatalf("the backend got %q of %q: %v", request.Body, request.Device, err)
		}
		numbers = append(numbers, *p.N)
	}
	return numbers
}

// delivered checks that the backend got payloads 0 to n-1, each once; in order, if so.
func (r *rig) delivered(n int, inOrder bool) {
	r.Helper()
	r.posted(n)
	r.WaitDrained(patience)
	got := r.bodies()
	if !inOrder {
		slices.Sort(got)
	}
	want := make([]int, n)
	for i := range want {
		want[i] = i
	}
	if !slices.Equal(got, want) {
		r.Errorf("the backend got %v, want %d messages, each once", got, n)
	}
}
