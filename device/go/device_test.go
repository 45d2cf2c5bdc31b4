package device

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mosquitto-bouncer/plugin/pki"
)

// TestValues: what becomes a payload, and what does not.
func TestValues(t *testing.T) {
	d := open(t, nil, Options{})
	defer d.Close()
	type key struct{}
	for _, c := range []struct {
		value  any
		want   string
		reason Reason
	}{
		{map[string]any{"b": 1, "a": 22.5}, `{"a":22.5,"b":1}`, ""},
		{json.RawMessage(" {\"b\" : 1.0}\n"), `{"b" : 1.0}`, ""},
		{struct {
			T float64 `json:"t"`
		}{1}, `{"t":1}`, ""},
		{"Zürich <&>\u2028", "\"Zürich <&>\u2028\"", ""},
		{nil, "null", ""},
		{[]byte("x"), `"eA=="`, ""},
		{map[int]int{2: 1}, `{"2":1}`, ""},
		{math.NaN(), "", BadPayload},
		{math.Inf(1), "", BadPayload},
		{"\xff", "", BadPayload},
		{map[any]int{1: 1, "1": 2}, "", BadPayload},
		{map[key]int{{}: 1}, "", BadPayload},
		{make(chan int), "", BadPayload},
		{json.RawMessage("NaN"), "", BadPayload},
		{json.RawMessage(""), "", BadPayload},
		{json.RawMessage(`{"a":1,"a":2}`), "", BadPayload},
		{json.RawMessage(strings.Repeat("[", 64) + strings.Repeat("]", 64)), "", BadPayload},
		{strings.Repeat("x", 65536), "", TooLarge},
		{strings.Repeat("x", 65500), "", TooLarge},
	} {
		delivery, err := d.Publish(t.Context(), c.value)
		if ReasonOf(err) != c.reason || (err != nil) != (c.reason != "") {
			t.Errorf("%.50v: %v, want %q", c.value, err, c.reason)
			continue
		}
		if err == nil {
			if m, _ := d.store.find(delivery.Number()); string(m.payload) != c.want {
				t.Errorf("%v became %s, want %s", c.value, m.payload, c.want)
			}
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Publish(canceled, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestOutboxBounds: nothing is taken above the bounds, and there is room again when messages have their outcomes.
func TestOutboxBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		d := open(t, b, Options{MaxMessages: 3, MaxBytes: 100})
		long := `"` + strings.Repeat("x", 97) + `"`
		if _, err := d.Publish(t.Context(), json.RawMessage(long+" ")); err != nil {
			t.Error(err)
		}
		if _, err := d.Publish(t.Context(), json.RawMessage("10")); ReasonOf(err) != OutboxFull {
			t.Errorf("101 bytes: %v", err)
		}
		publish(t, d, "1")
		if _, err := d.Publish(t.Context(), json.RawMessage("1")); ReasonOf(err) != OutboxFull {
			t.Errorf("101 bytes: %v", err)
		}
		must(t, d.Start())
		synctest.Wait()
		b.setDown(true)
		b.cut()
		synctest.Wait()
		for range 3 {
			publish(t, d, "1")
		}
		if _, err := d.Publish(t.Context(), 1); ReasonOf(err) != OutboxFull {
			t.Errorf("a fourth message: %v", err)
		}
		must(t, d.Close())
	})
}

// TestRestart: an outbox goes over to the next Device, numbers and what was signed included.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := t.TempDir()
		b := &fakeBroker{reply: func(n int, p published) reply { return reply{silent: true} }}
		d := open(t, b, Options{State: state})
		must(t, d.Start())
		first, second := publish(t, d, "1"), publish(t, d, "2")
		synctest.Wait()
		if _, err := Open(d.config, Options{State: state}); !errors.Is(err, ErrInUse) {
			t.Errorf("a second Device: %v", err)
		}
		must(t, d.Close())
		must(t, d.Close())
		if _, err := first.Wait(t.Context()); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := d.Publish(t.Context(), 1); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if err := d.Start(); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		other := d.config
		other.DeviceID = "sensor_002"
		if _, err := Open(other, Options{State: state}); err == nil {
			t.Error("another device has opened the state")
		}

		again := &fakeBroker{}
		d = open(t, again, Options{State: state})
		var outcomes []Outcome
		d.OnOutcome = func(o Outcome) { outcomes = append(outcomes, o) }
		third := publish(t, d, "3")
		must(t, d.Start())
		if o := outcome(t, third); o.Delivery != 3 || o.Sent != 1 {
			t.Errorf("%+v", o)
		}
		synctest.Wait()
		was, is := b.all(), again.all()
		if len(outcomes) != 2 || outcomes[0].Delivery != first.Number() || outcomes[1].Delivery != second.Number() || outcomes[0].Sent != 2 ||
			outcomes[0].Kind != Accepted || outcomes[0].MayBeRepeated {
			t.Errorf("%+v", outcomes)
		}
		if len(is) != 3 || is[0].text != was[0].text || is[1].text != was[1].text {
			t.Errorf("sent again: %+v", is)
		}
		must(t, d.Close())
		d = open(t, &fakeBroker{}, Options{State: state})
		if delivery := publish(t, d, "4"); delivery.Number() != 4 {
			t.Errorf("the next number is %d", delivery.Number())
		}
		must(t, d.Close())
	})
}

// TestFullDisk: while the outbox cannot be written, nothing is taken and nothing new is signed; then all goes on.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := t.TempDir()
		b := &fakeBroker{down: true}
		d := open(t, b, Options{State: state})
		must(t, d.Start())
		first := publish(t, d, "1")
		// Writing fails, and so does writing the file again.
		temporary := filepath.Join(state, logName+".new")
		d.mu.Lock()
		must(t, d.store.log.close())
		d.mu.Unlock()
		must(t, os.Mkdir(temporary, 0o700))
		if _, err := d.Publish(t.Context(), 2); err == nil || ReasonOf(err) != "" {
			t.Errorf("%v, want an error of the disk", err)
		}
		b.setDown(false)
		time.Sleep(2 * time.Minute)
		if n := len(b.all()); n != 0 {
			t.Errorf("%d messages were sent that are not on the disk", n)
		}
		must(t, os.Remove(temporary))
		if o := outcome(t, first); o.Kind != Accepted || o.Sent != 1 {
			t.Errorf("%+v", o)
		}
		if o := outcome(t, publish(t, d, "3")); o.Kind != Accepted {
			t.Errorf("%+v", o)
		}
		must(t, d.Close())
		s, err := openStore(state, "sensor_001", 0)
		must(t, err)
		if len(s.queue) != 0 || s.next != 3 {
			t.Errorf("%d messages are left, the next is %d", len(s.queue), s.next)
		}
		must(t, s.close())
	})
}

// failing is a key in a secure element that is away.
type failing struct {
	crypto.Signer
	away *bool
}

func (f failing) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if *f.away {
		return nil, errors.New("the secure element does not answer")
	}
	return f.Signer.Sign(r, digest, o)
}

// TestSecureElement: a key that fails for a time delays messages, and loses none.
func TestSecureElement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		away := true
		credential, err := PrivateKey(failing{key, &away}, &key.PublicKey)
		must(t, err)
		b := &fakeBroker{t: t}
		d := open(t, b, Options{})
		d.config.Credential = credential
		failures := 0
		d.OnError = func(err error) {
			if strings.Contains(err.Error(), "secure element") {
				failures++
			}
			if failures == 3 {
				away = false
			}
		}
		must(t, d.Start())
		if o := outcome(t, publish(t, d, "1")); o.Kind != Accepted || o.Sent != 1 || failures != 3 {
			t.Errorf("%+v after %d failures", o, failures)
		}
		must(t, d.Close())
	})
}

func TestCredentials(t *testing.T) {
	for _, secrets := range [][][]byte{nil, {nil}, {[]byte("")}, {[]byte("\x00\x00")}, {[]byte(" \t\n")}, {testSecret, []byte("")}, make([][]byte, 9)} {
		if _, err := Secret(secrets...); err == nil {
			t.Errorf("the secrets %q were taken", secrets)
		}
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	if _, err := PrivateKey(p384); err == nil {
		t.Error("a key on P-384 was taken")
	}
	if _, err := PrivateKey(private, make([]crypto.PublicKey, 9)...); err == nil {
		t.Error("nine keys of the gateway were taken")
	}
	if _, err := PrivateKey(private, &p384.PublicKey); err == nil {
		t.Error("a gateway's key on P-384 was taken")
	}
	for _, text := range []string{"x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		must(t, err)
		if _, err := ReadPrivateKey(pemOf("PRIVATE KEY", der), []byte(text)); err == nil {
			t.Errorf("%q were taken for the gateway's keys", text)
		}
	}
	c, err := Secret(testSecret)
	must(t, err)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(format, c); strings.Contains(text, string(testSecret)) || strings.Contains(text, "supersecret") {
			t.Errorf("%s prints the secret: %s", format, text)
		}
	}
	// The zero value signs nothing and verifies nothing.
	if _, err := Sign(new(Credential), Message{DeviceID: "a", MessageID: "550e8400-e29b-41d4-a716-446655440000", Payload: []byte("1")}); err == nil {
		t.Error("signed without a credential")
	}
	_, text := commandText(t, 1, 1<<40)
	for _, c := range []*Credential{nil, new(Credential)} {
		if _, err := VerifyCommand(c, "sensor_001", []byte(text), time.Time{}); ReasonOf(err) != Forged {
			t.Errorf("verified without a credential: %v", err)
		}
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestBundle reads bundles, and says what is wrong with others.
func TestBundle(t *testing.T) {
	ca, err := pki.NewCA("CA", time.Now(), time.Hour)
	must(t, err)
	certificate, key, err := ca.IssueDevice("sensor_001", time.Now(), time.Hour)
	must(t, err)
	good := map[string]any{
		"device_id": "sensor_001", "host": "broker.example.org", "port": 8883, "algorithm": "HMAC-SHA256", "ca": "ca.crt",
		"certificate": "device.crt", "key": "device.key", "secret": "secret", "topics": map[string]string{"data": "device/sensor_001/data"}, "new": 1, "tolerance": 60,
	}
	read := func(changes map[string]any, options Options) (Config, error) {
		dir := t.TempDir()
		members := map[string]any{}
		for name, value := range good {
			members[name] = value
		}
		for name, value := range changes {
			members[name] = value
		}
		text, err := json.Marshal(members)
		must(t, err)
		for name, content := range map[string][]byte{"device.json": text, "ca.crt": ca.CertPEM(), "device.crt": certificate, "device.key": key, "secret": []byte("a secret\n\n"), "empty": nil, "keys": nil} {
			must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		}
		return ReadBundle(dir, options)
	}
	c, err := read(nil, Options{})
	must(t, err)
	want, err := Secret([]byte("a secret\n")) // but for one newline
	must(t, err)
	m := Message{DeviceID: "sensor_001", MessageID: "550e8400-e29b-41d4-a716-446655440000", Payload: []byte("1")}
	got, err := Sign(c.Credential, m)
	must(t, err)
	if expected, err := Sign(want, m); err != nil || !bytes.Equal(got, expected) {
		t.Errorf("the secret is another: %v", err)
	}
	if c.DeviceID != "sensor_001" || c.Address != "broker.example.org:8883" || c.TLS.ServerName != "broker.example.org" || c.TLS.InsecureSkipVerify ||
		c.Tolerance != time.Minute || c.TLS.MinVersion < tls.VersionTLS12 || len(c.TLS.Certificates) != 1 || c.Topics != (Topics{Data: "device/sensor_001/data"}) {
		t.Errorf("%+v", c)
	}
	// The key of the certificate, which is on P-256, signs the messages, too.
	keyed, err := read(map[string]any{"algorithm": "ECDSA P-256", "signing_key": "device.key", "command_keys": "keys"}, Options{})
	if err != nil || keyed.Credential.Algorithm() != "ECDSA P-256" {
		t.Errorf("%+v, %v", keyed.Credential, err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	must(t, err)
	if _, err := read(map[string]any{"secret": nil, "key": nil, "certificate": nil}, Options{Credential: want, Certificate: &pair}); err != nil {
		t.Errorf("keys in a secure element: %v", err)
	}
	for member, values := range map[string][]any{
		"host":        {nil, ""},
		"tolerance":   {-1, "60", 1 << 60},
		"port":        {nil, 0, 65536, "8883"},
		"algorithm":   {nil, "", "RSA", "Ed25519", "ECDSA P-256"},
		"ca":          {nil, "empty", "none"},
		"certificate": {nil, "empty", "none", "device.key"},
		"key":         {nil, "empty", "none", "device.crt"},
		"secret":      {nil, "empty", "none", "."},
	} {
		for _, value := range values {
			if _, err := read(map[string]any{member: value}, Options{}); err == nil {
				t.Errorf("%s %v was taken", member, value)
			} else if strings.Contains(err.Error(), "a secret") {
				t.Errorf("the error quotes the secret: %v", err)
			}
		}
	}
	if _, err := read(map[string]any{"algorithm": "Ed25519", "signing_key": "device.key"}, Options{}); err == nil || !strings.Contains(err.Error(), "algorithm") {
		t.Errorf("a key of another algorithm: %v", err)
	}
	if _, err := FromBundle(t.TempDir(), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no bundle: %v", err)
	}
}

// TestOptions: what is outside of its range is refused, and so is TLS without verification.
func TestOptions(t *testing.T) {
	d := open(t, nil, Options{})
	must(t, d.Close())
	for _, o := range []Options{{MaxMessages: -1}, {MaxBytes: -1}, {MaxMessageBytes: 100}, {MaxMessageBytes: 1<<20 + 1}, {Commands: -1}, {Tolerance: -time.Second}} {
		o.State = t.TempDir()
		if _, err := Open(d.config, o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	for name, change := range map[string]func(*Config){
		"no TLS":          func(c *Config) { c.TLS = nil },
		"the system's CA": func(c *Config) { c.TLS = &tls.Config{} },
		"no verification": func(c *Config) { c.TLS = &tls.Config{RootCAs: x509.NewCertPool(), InsecureSkipVerify: true} },
		"no credential":   func(c *Config) { c.Credential = nil },
		"an empty one":    func(c *Config) { c.Credential = new(Credential) },
		"no topic":        func(c *Config) { c.Topics.Data = "" },
		"no address":      func(c *Config) { c.Address = "" },
		"no device id":    func(c *Config) { c.DeviceID = "" },
	} {
		c := d.config
		change(&c)
		if _, err := Open(c, Options{State: t.TempDir()}); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	if _, err := Open(d.config, Options{}); err == nil {
		t.Error("no state directory")
	}
}

// TestLongPackets: a connection on which a longer packet begins than the device reads ends before its bytes are read.
func TestLongPackets(t *testing.T) {
	feed := func(chunk int, stream []byte) (n int, err error) {
		device, broker := net.Pipe()
		defer device.Close()
		go func() {
			defer broker.Close()
			for len(stream) > 0 {
				k := min(chunk, len(stream))
				if _, err := broker.Write(stream[:k]); err != nil {
					return
				}
				stream = stream[k:]
			}
		}()
		c := &boundedConn{Conn: device}
		all, err := io.ReadAll(c)
		return len(all), err
	}
	packet := func(length ...byte) []byte {
		n, shift := 0, 0
		for _, b := range length {
			n |= int(b&0x7f) << shift
			shift += 7
		}
		return append(append([]byte{0x30}, length...), make([]byte, n)...)
	}
	good := bytes.Join([][]byte{packet(0), packet(127), packet(0x80, 1), packet(0xff, 0x7f), packet(0x80, 0x80, 0x10), packet(0)}, nil)
	for _, chunk := range []int{1, 2, 3, 1000, 1 << 20} {
		if n, err := feed(chunk, good); err != nil || n != len(good) {
			t.Errorf("chunks of %d: %d of %d bytes, %v", chunk, n, len(good), err)
		}
		for _, bad := range [][]byte{{0x30, 0x81, 0x80, 0x10}, {0x30, 0xff, 0xff, 0xff, 0x7f}, {0x30, 0x80, 0x80, 0x80, 0x80}} {
			if _, err := feed(chunk, append(packet(5), bad...)); !errors.Is(err, errPacket) {
				t.Errorf("chunks of %d, %x: %v", chunk, bad, err)
			}
		}
	}
}
