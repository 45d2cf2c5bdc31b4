package main

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/testkit"
)

// aKeyPair is the files of a key, and what signs with it.
type aKeyPair struct {
	public, private string // files
	csr             string
	signer          *publickey.Signer
}

func newKeyPair(t *testing.T, a publickey.Algorithm) aKeyPair {
	t.Helper()
	private := testkit.PrivateKey(t, string(a))
	dir := t.TempDir()
	k := aKeyPair{public: filepath.Join(dir, "key.pub"), private: filepath.Join(dir, "signing.key"), csr: filepath.Join(dir, "key.csr")}
	write := func(file, kind string, der []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	write(k.public, "PUBLIC KEY", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(private)
	write(k.private, "PRIVATE KEY", der, err)
	der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}}, private)
	write(k.csr, "CERTIFICATE REQUEST", der, err)
	if k.signer, err = publickey.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestDeviceWithAKey: a device is registered with a public key, shown, its messages signed and verified, its key rotated; and
// what is in its bundle, in the database and in what is printed cannot sign.
func TestDeviceWithAKey(t *testing.T) {
	for _, a := range []publickey.Algorithm{publickey.Ed25519, publickey.P256} {
		dir := newDir(t)
		config := filepath.Join(dir, "bouncer.toml")
		k, next := newKeyPair(t, a), newKeyPair(t, a)
		fingerprint := k.signer.Public().Fingerprint().String()
		got := device(t, dir, "add", "k1", "--key", k.public)
		if !strings.Contains(got, "ca.crt  device.crt  device.key  command-keys.pem  device.json  README\n") || !strings.Contains(got, string(a)) || !strings.Contains(got, fingerprint) {
			t.Errorf("add: %s", got)
		}
		if got := device(t, dir, "show", "k1"); !strings.Contains(got, "Public key") || !strings.Contains(got, string(a)+", since") || !strings.Contains(got, fingerprint) || strings.Contains(got, "Secret") {
			t.Errorf("show: %s", got)
		}
		var shown struct {
			PublicKeys []struct{ Algorithm, Fingerprint string } `json:"public_keys"`
			Since      *string                                   `json:"secret_since"`
		}
		if err := json.Unmarshal([]byte(device(t, dir, "show", "k1", "--json")), &shown); err != nil || len(shown.PublicKeys) != 1 ||
			shown.PublicKeys[0].Fingerprint != fingerprint || shown.PublicKeys[0].Algorithm != string(a) || shown.Since != nil {
			t.Errorf("%+v, %v", shown, err)
		}
		sign := func(private string) string {
			t.Helper()
			r := bouncerctl(t, `{"t":22}`, "sign", "--config", config, "--device", "k1", "--private-key", private)
			if r.code != 0 {
				t.Fatal(r.stderr)
			}
			return r.stdout
		}
		verify := func(message string, args ...string) string {
			t.Helper()
			r := bouncerctl(t, message, append([]string{"verify", "--config", config}, args...)...)
			return r.stdout + r.stderr
		}
		message := sign(k.private)
		if got := verify(message); !strings.HasPrefix(got, "Good: signed by k1, at") {
			t.Error(got)
		}
		if got := verify(message, "--key", k.public); !strings.HasPrefix(got, "Good: signed by k1, at") {
			t.Error(got)
		}
		if got := verify(sign(next.private)); !strings.Contains(got, "not one with "+string(a)) || !strings.Contains(got, "public key may be another one") {
			t.Error(got)
		}
		failReading(t, "1", 1, `device "k1" signs with a key of which only the public half is registered; name the private one with --private-key`,
			"sign", "--config", config, "--device", "k1")
		fail(t, 1, `device "k1" signs with a public key and has no secret; see bouncerctl device show`, deviceArgs(dir, "rotate", "k1")...)
		fail(t, 1, `device "k1" has this public key already; make a new one`, deviceArgs(dir, "rotate", "k1", "--key", k.public)...)

		// What a thief of the database has: its bytes, and every text in it as a secret.
		stolen, err := os.ReadFile(filepath.Join(dir, "devices.db"))
		if err != nil {
			t.Fatal(err)
		}
		private, _ := pem.Decode([]byte(readFile(t, k.private)))
		if bytes.Contains(stolen, private.Bytes) || bytes.Contains(stolen, private.Bytes[len(private.Bytes)-32:]) {
			t.Error("the private key is in the database")
		}
		var placeholder []byte
		if err := openDatabase(t, dir).QueryRow("SELECT shared_secret FROM devices WHERE device_id = 'k1'").Scan(&placeholder); err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{k.signer.Public().Text(), readFile(t, k.public), fingerprint, hex.EncodeToString(placeholder), "k1"} {
			file := filepath.Join(t.TempDir(), "secret")
			writeFile(t, file, strings.ReplaceAll(secret, "\n", ""))
			r := bouncerctl(t, "1", "sign", "--device", "k1", "--secret-file", file)
			if got := verify(r.stdout); r.code != 0 || !strings.Contains(got, "has 32 bytes, like an HMAC, and the device is registered with a public key") {
				t.Errorf("signed with %.20q: %s", secret, got)
			}
		}

		if got := device(t, dir, "rotate", "k1", "--key", next.public); !strings.Contains(got, "The old one is still accepted until") {
			t.Error(got)
		}
		if got := verify(sign(k.private)); !strings.HasPrefix(got, "Good: signed by k1 with a public key that has been replaced") {
			t.Error(got)
		}
		if got := device(t, dir, "show", "k1"); !strings.Contains(got, "Old public key") || !strings.Contains(got, fingerprint) {
			t.Error(got)
		}
		device(t, dir, "rotate", "k1", "--key", k.public, "--now") // back, and the other one is not accepted
		if got := verify(sign(next.private)); !strings.Contains(got, "None of the usual mistakes") {
			t.Error(got)
		}
	}
}

// TestKeyArguments: what add and rotate refuse.
func TestKeyArguments(t *testing.T) {
	dir := newDir(t)
	k := newKeyPair(t, publickey.P256)
	for want, args := range map[string][]string{
		"--secret-file, --key and --sign-with-certificate exclude each other":                       {"--key", k.public, "--sign-with-certificate"},
		"--sign-with-certificate needs a certificate; name the key of one of another CA with --key": {"--no-cert", "--sign-with-certificate"},
		"--csr and --key cannot both read standard input":                                           {"--csr", "-", "--key", "-"},
	} {
		if got := bouncerctl(t, "", deviceArgs(dir, "add", append([]string{"x"}, args...)...)...); got.code != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%q: %+v", args, got)
		}
	}
	for want, file := range map[string]string{"private key, which belongs on the device alone": k.private, "CERTIFICATE REQUEST": k.csr, "not a public key in PEM": filepath.Join(dir, "bouncer.toml")} {
		if got := bouncerctl(t, "", deviceArgs(dir, "add", "x", "--key", file)...); got.code != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v", want, got)
		}
	}
	device(t, dir, "add", "s")
	fail(t, 1, `device "s" has a secret and no public key; to give it one, remove it and register it again`, deviceArgs(dir, "rotate", "s", "--key", k.public)...)
	if got := bouncerctl(t, "", deviceArgs(dir, "rotate", "s", "--key", k.public, "--out", "x")...); got.code != 2 {
		t.Errorf("%+v", got)
	}
}

// TestSignWithCertificate: the certificate's key signs, one that bouncerctl made or the device's own; renewing the certificate
// with another key has both accepted, and with the same key changes nothing. The README's example is a good message.
func TestSignWithCertificate(t *testing.T) {
	requireTools(t, "openssl", "python3", "bash")
	dir := newDir(t)
	config := filepath.Join(dir, "bouncer.toml")
	device(t, dir, "add", "made", "--sign-with-certificate")
	example := func(bundle string) string {
		t.Helper()
		_, text, found := strings.Cut(readFile(t, filepath.Join(bundle, "README")), "paste all lines at\nonce:\n")
		text, _, more := strings.Cut(text, "|\n    mosquitto_pub")
		if !found || !more {
			t.Fatalf("no example in\n%s", readFile(t, filepath.Join(bundle, "README")))
		}
		var lines []string
		for line := range strings.Lines(text) {
			lines = append(lines, strings.TrimPrefix(line, "    "))
		}
		c := exec.Command("bash", "-ec", strings.Join(lines, ""))
		c.Dir = bundle
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	good := func(message, want string) {
		t.Helper()
		if got := bouncerctl(t, message, "verify", "--config", config); got.code != 0 || !strings.HasPrefix(got.stdout, want) {
			t.Errorf("%s: %+v", message, got)
		}
	}
	bundle := filepath.Join(dir, "devices", "made")
	for range 8 { // s is above half the order in half of the signatures
		good(example(bundle), "Good: signed by made, at")
	}
	if got := device(t, dir, "show", "made"); !strings.Contains(got, "ECDSA P-256 of the certificate") {
		t.Error(got)
	}
	renewed := filepath.Join(t.TempDir(), "renewed")
	device(t, dir, "renew", "made", "--out", renewed)
	if got := readFile(t, filepath.Join(renewed, "README")); !strings.Contains(got, "The certificate's key, ECDSA P-256, signs the messages too: from now on the\ndevice must sign with the new one. Messages signed with the old one are accepted\nas well until 2") {
		t.Error(got)
	}
	good(example(bundle), "Good: signed by made with a public key that has been replaced")
	if err := os.Rename(filepath.Join(renewed, "device.key"), filepath.Join(bundle, "device.key")); err != nil {
		t.Fatal(err)
	}
	good(example(bundle), "Good: signed by made, at")

	// Renewed too often: the old keys are ended with the present one.
	for range 2 {
		device(t, dir, "renew", "made", "--out", filepath.Join(t.TempDir(), "more"))
	}
	last := filepath.Join(t.TempDir(), "last")
	if got := bouncerctl(t, "", deviceArgs(dir, "renew", "made", "--out", last)...); got.code != 1 || !strings.Contains(got.stderr, "end all of them: bouncerctl device rotate made --key FILE --now") {
		t.Errorf("%+v", got)
	}
	present := filepath.Join(t.TempDir(), "present.pub")
	var text string
	if err := openDatabase(t, dir).QueryRow("SELECT public_key FROM public_keys WHERE device_id = 'made' AND expires_at IS NULL").Scan(&text); err != nil {
		t.Fatal(err)
	}
	writeFile(t, present, "-----BEGIN PUBLIC KEY-----\n"+text+"\n-----END PUBLIC KEY-----\n")
	if got := device(t, dir, "rotate", "made", "--key", present, "--now"); !strings.Contains(got, "The old ones are no longer accepted.") {
		t.Error(got)
	}
	if got := device(t, dir, "show", "made"); strings.Contains(got, "Old") || !strings.Contains(got, "of the certificate") {
		t.Error(got)
	}
	device(t, dir, "renew", "made", "--out", last)

	// The device's own key, of both kinds.
	for _, a := range []publickey.Algorithm{publickey.Ed25519, publickey.P256} {
		k := newKeyPair(t, a)
		id := "own-" + strings.ReplaceAll(string(a), " ", "-")
		device(t, dir, "add", id, "--csr", k.csr, "--sign-with-certificate")
		bundle := filepath.Join(dir, "devices", id)
		writeFile(t, filepath.Join(bundle, "device.key"), readFile(t, k.private))
		good(example(bundle), "Good: signed by "+id+", at")
		again := filepath.Join(t.TempDir(), "again")
		device(t, dir, "renew", id, "--csr", k.csr, "--out", again)
		good(example(bundle), "Good: signed by "+id+", at")
		if got := device(t, dir, "show", id); strings.Contains(got, "Old") {
			t.Error(got)
		}
		if got := readFile(t, filepath.Join(again, "README")); strings.Contains(got, "messages") {
			t.Errorf("the key is the same, and the README says\n%s", got)
		}
		// A key of its own is not touched by a renewal.
		device(t, dir, "add", id+"-apart", "--key", k.public)
		bundle = filepath.Join(dir, "devices", id+"-apart")
		writeFile(t, filepath.Join(bundle, "signing.key"), readFile(t, k.private))
		good(example(bundle), "Good: signed by "+id+"-apart, at")
		device(t, dir, "renew", id+"-apart", "--out", filepath.Join(t.TempDir(), "apart"))
		good(example(bundle), "Good: signed by "+id+"-apart, at")
	}
}

// TestKeyMistakes: verify names what firmwares get wrong with the signatures of private keys.
func TestKeyMistakes(t *testing.T) {
	k := newKeyPair(t, publickey.P256)
	const text = `k11727712000550e8400-e29b-41d4-a716-4466554400001`
	signature, err := k.signer.Signature([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	high := bytes.Clone(signature)
	var borrow int
	order := elliptic.P256().Params().N.Bytes()
	for i := 31; i >= 0; i-- {
		d := int(order[i]) - int(signature[32+i]) - borrow
		borrow = 0
		if d < 0 {
			d, borrow = d+256, 1
		}
		high[32+i] = byte(d)
	}
	turned := bytes.Clone(signature)
	for _, half := range [][]byte{turned[:32], turned[32:]} {
		for i := range 16 {
			half[i], half[31-i] = half[31-i], half[i]
		}
	}
	der := append([]byte{0x30, 70, 2, 33, 0}, bytes.Repeat([]byte{0x80}, 32)...)
	der = append(append(der, 2, 33, 0), bytes.Repeat([]byte{0x80}, 32)...)
	for want, signature := range map[string][]byte{
		"Good: signed by k1": signature,
		"It is good but for s, which is above half the order of P-256: send n - s in its place": high,
		"write r and s with the most significant byte first":                                    turned,
		"has 32 bytes, like an HMAC":                                                            signature[:32],
		"signature is in DER; write r and s, each as 64 hexadecimal digits":                     der,
		"None of the usual mistakes":                                                            make([]byte, 64),
	} {
		message := `{"device_id":"k1","timestamp":1727712000,"message_id":"550e8400-e29b-41d4-a716-446655440000","payload":1,"signature":"` + hex.EncodeToString(signature) + `"}`
		if got := bouncerctl(t, message, "verify", "--key", k.public); !strings.Contains(got.stdout, want) {
			t.Errorf("no %q in %+v", want, got)
		}
	}
}

// TestEd25519BytesTurned: RFC 8032 has the least significant byte first, so the cure is not that of ECDSA.
func TestEd25519BytesTurned(t *testing.T) {
	k := newKeyPair(t, publickey.Ed25519)
	for i := range 6 {
		signature, err := k.signer.Signature(fmt.Appendf(nil, "k11727712000550e8400-e29b-41d4-a716-446655440000%d", i))
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(signature[:32])
		slices.Reverse(signature[32:])
		message := fmt.Sprintf(`{"device_id":"k1","timestamp":1727712000,"message_id":"550e8400-e29b-41d4-a716-446655440000","payload":%d,"signature":"%x"}`, i, signature)
		const want = "good but for the order of its bytes: write R and S as they are, with the least significant byte first"
		if got := bouncerctl(t, message, "verify", "--key", k.public); !strings.Contains(got.stdout, want) {
			t.Errorf("no %q in %+v", want, got)
		}
	}
}

// TestImportKeys: public keys and secrets in one file, with bundles and without; a line has one of them.
func TestImportKeys(t *testing.T) {
	dir := newDir(t)
	k, p := newKeyPair(t, publickey.Ed25519).signer.Public(), newKeyPair(t, publickey.P256).signer.Public()
	file := filepath.Join(t.TempDir(), "fleet.csv")
	writeFile(t, file, "id,secret,public_key\na,,"+k.Text()+"\nb,s3cret,\nc,,"+p.Text()+"\nd,,\n")
	fail(t, 1, file+`:5: device "d" has no secret; write one there, or use --out DIR to make one`, deviceArgs(dir, "import", file)...)
	out := filepath.Join(t.TempDir(), "bundles")
	device(t, dir, "import", file, "--out", out)
	for id, key := range map[string]*publickey.Key{"a": k, "b": nil, "c": p, "d": nil} {
		shown := device(t, dir, "show", id)
		_, err := os.Stat(filepath.Join(out, id, "secret"))
		if (key == nil) != (err == nil) || key != nil && !strings.Contains(shown, key.Fingerprint().String()) {
			t.Errorf("%s: %v, %s", id, err, shown)
		}
	}
	for want, line := range map[string]string{
		`device "x" has a secret and a public key; leave one empty`: "x,s," + k.Text(),
		`device "x": not a public key in base64`:                    "x,,???",
		`device "x": not a public key that can be read`:             "x,,AAAA",
	} {
		writeFile(t, file, "id,secret,key\n"+line+"\n")
		if got := bouncerctl(t, "", deviceArgs(dir, "import", file)...); got.code != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v", want, got)
		}
	}
}
