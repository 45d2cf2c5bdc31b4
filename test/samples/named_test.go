package samples

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/httpd"
)

// named are the tests of samples that the documentation names.
var named = map[string]func(t *testing.T, code string){
	"example message":   exampleMessage,
	"example canonical": exampleCanonical,
	"example dump":      exampleDump,
	"example signature": exampleSignature,
	"signature":         signature,
	"python envelope":   pythonEnvelope,
	"c envelope":        cEnvelope,
	"command":           sendCommand,
}

// The worked example of docs/envelope.md.
const (
	exampleSecret = "supersecretkey123"
	exampleSigned = `sensor_0011727712000550e8400-e29b-41d4-a716-446655440000` + exampleText
	exampleText   = `{"battery":3.71,"humidity":60,"temperature":22.5,"unit":"degC"}`
)

func exampleMAC() string { return mac(exampleSecret, exampleSigned) }

func mac(secret, signed string) string {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(signed))
	return hex.EncodeToString(h.Sum(nil))
}

func exampleMessage(t *testing.T, code string) {
	message := strings.TrimSuffix(code, "\n")
	if len(message) != 270 {
		t.Errorf("%d bytes", len(message))
	}
	if got := verify(t, []byte(message), exampleSecret); got != exampleText {
		t.Errorf("the payload is %s", got)
	}
}

func exampleCanonical(t *testing.T, code string) {
	if code != exampleText+"\n" || len(exampleText) != 63 {
		t.Errorf("not %s", exampleText)
	}
}

func exampleDump(t *testing.T, code string) {
	var dumped []byte
	for line := range strings.Lines(code) {
		digits, text := strings.ReplaceAll(line[6:53], " ", ""), strings.TrimSuffix(line[55:], "\n")
		b, err := hex.DecodeString(digits)
		if err != nil || string(b) != text || line[:4] != fmt.Sprintf("%04x", len(dumped)) {
			t.Errorf("%q: %q %v", line, b, err)
		}
		dumped = append(dumped, b...)
	}
	if string(dumped) != exampleSigned || len(dumped) != 119 {
		t.Errorf("%d bytes, not those that are signed", len(dumped))
	}
}

func exampleSignature(t *testing.T, code string) {
	if code != exampleMAC()+"\n" {
		t.Errorf("it is %s", exampleMAC())
	}
}

// signature prints the example's.
func signature(t *testing.T, code string) {
	output, err := shell(t.TempDir(), "-eu", code).CombinedOutput()
	if err != nil || string(output) != exampleMAC()+"\n" {
		t.Errorf("printed %q, %v", output, err)
	}
}

// verify holds a message against what docs/envelope.md says is signed, and returns its payload in canonical form.
func verify(t *testing.T, message []byte, secret string) string {
	t.Helper()
	var m struct {
		DeviceID  string          `json:"device_id"`
		Timestamp json.Number     `json:"timestamp"`
		MessageID string          `json:"message_id"`
		Payload   json.RawMessage `json:"payload"`
		Signature string          `json:"signature"`
	}
	if err := json.Unmarshal(message, &m); err != nil {
		t.Fatalf("%v: %.300s", err, message)
	}
	canonical, err := envelope.AppendCanonical(nil, m.Payload)
	if err != nil {
		t.Fatal(err)
	}
	asSent := mac(secret, m.DeviceID+m.Timestamp.String()+m.MessageID+string(m.Payload))
	if m.Signature != asSent && m.Signature != mac(secret, m.DeviceID+m.Timestamp.String()+m.MessageID+string(canonical)) {
		t.Errorf("the signature is wrong: %.300s", message)
	}
	return string(canonical)
}

func pythonEnvelope(t *testing.T, code string) {
	const call = `
print(envelope("sensor_001", "s3cret ä", {"z": [1, 22.0, None], "a": {"é": "\n", "b": True}}))
`
	c := exec.Command("python3", "-W", "error", "-")
	c.Stdin = strings.NewReader(code + call)
	output, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if got := verify(t, output, "s3cret ä"); got != `{"a":{"b":true,"\u00e9":"\n"},"z":[1,22.0,null]}` {
		t.Errorf("the payload is %s", got)
	}
}

// cMain calls make_envelope with a payload of each length in its arguments, in memory that is exactly as large as it says.
const cMain = `
#include <stdlib.h>

/* usage: SECRET LENGTH...; prints what make_envelope wrote for a JSON string of LENGTH bytes */
int main(int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        size_t length = strtoul(argv[i], NULL, 10);
        char *payload = malloc(length + 1);
        memset(payload, 'x', length);
        payload[0] = payload[length - 1] = '"';
        payload[length] = 0;
        size_t room = length + 400;
        char *message = malloc(room);
        int n = make_envelope(message, room, "sensor_001", 1727712000LL, "550e8400-e29b-41d4-a716-446655440000", payload, argv[1]);
        if (n < 0 || (size_t)n >= room || message[n] != 0)
            return 2;
        puts(message);
        free(message);
        /* Whatever room there is, nothing is written beyond it, and only what fits is called a message. */
        for (size_t size = 0; size <= (size_t)n + 1; size += size < 300 || size + 300 > (size_t)n ? 1 : 97) {
            message = malloc(size + (size == 0));
            int m = make_envelope(message, size, "sensor_001", 1727712000LL, "550e8400-e29b-41d4-a716-446655440000", payload, argv[1]);
            if (size <= (size_t)n ? m != -1 : m != n)
                return 3;
            free(message);
        }
        free(payload);
    }
    return 0;
}
`

// cEnvelope compiles the sample with warnings as errors and the sanitizers, and has it write messages of all sizes.
func cEnvelope(t *testing.T, code string) {
	dir := t.TempDir()
	source, program := filepath.Join(dir, "sample.c"), filepath.Join(dir, "sample")
	if err := os.WriteFile(source, []byte(code+cMain), 0o600); err != nil {
		t.Fatal(err)
	}
	compile := exec.Command("gcc", "-std=c99", "-g", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Wformat-truncation=0", "-Werror",
		"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", program, source, "-lcrypto")
	if output, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	// 1024 and 1280 were the buffers of an earlier sample; the last is the longest payload of a message of 64 KiB.
	lengths := []string{"2", "700", "1024", "1280", "2000", "65300"}
	run := exec.Command(program, append([]string{exampleSecret}, lengths...)...)
	var said strings.Builder
	run.Stderr = &said
	output, err := run.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	messages := strings.Split(strings.TrimSuffix(string(output), "\n"), "\n")
	if len(messages) != len(lengths) {
		t.Fatalf("%d messages", len(messages))
	}
	for i, message := range messages {
		if payload := verify(t, []byte(message), exampleSecret); fmt.Sprint(len(payload)) != lengths[i] {
			t.Errorf("a payload of %s bytes became one of %d", lengths[i], len(payload))
		}
	}
}

// commands takes what the sample sends.
type commands struct {
	httpd.Service
	sent httpd.NewCommand
}

func (c *commands) Send(_ context.Context, n httpd.NewCommand) (httpd.Command, error) {
	c.sent = n
	return httpd.Command{ID: "x", Device: n.Device, Body: n.Body, State: "succeeded", Final: true}, nil
}

// sendCommand runs the request against the listener, with its real token and another port.
func sendCommand(t *testing.T, code string) {
	service, dir := new(commands), t.TempDir()
	token := strings.Repeat("0123456789abcdef", 4)
	server, err := httpd.Start(httpd.Options{Listen: "127.0.0.1:0", Token: []byte(token), MinTTL: 2 * time.Second, MaxTTL: 168 * time.Hour,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, service)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	if err := os.WriteFile(filepath.Join(dir, "http-token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := shell(dir, "-eu", strings.Replace(code, "127.0.0.1:8080", server.Addr().String(), 1)).CombinedOutput()
	if err != nil || !strings.Contains(string(output), `"state":"succeeded"`) {
		t.Errorf("%v: %s", err, output)
	}
	if s := service.sent; s.Device != "sensor_001" || s.TTL != 10*time.Minute || string(s.Body) != `{"set":"interval","seconds":30}` {
		t.Errorf("%+v", s)
	}
}
