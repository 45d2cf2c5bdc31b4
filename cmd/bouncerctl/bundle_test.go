package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/files"
)

// TestReadmeSnippet: what the README says to paste into a shell publishes an
// envelope whose signature is right.
func TestReadmeSnippet(t *testing.T) {
	requireTools(t, "python3")
	dir := newDir(t, "--port", "18883", "--host", "broker.example")
	for id, secret := range map[string]string{
		"sensor_001": "",
		"a:b.c-d":    "-x 'quoted' \"$HOME\" `id` \\ ä%s",
	} {
		args := deviceArgs(dir, "add", id)
		if secret != "" {
			args = append(args, "--secret-file", "-")
		}
		if got := bouncerctl(t, secret, args...); got.code != 0 {
			t.Fatal(got.stderr)
		}
		bundle := filepath.Join(dir, "devices", id)

		// Instead of mosquitto_pub, something that shows how it is called.
		bin := t.TempDir()
		recorded := filepath.Join(bin, "recorded")
		stub := "#!/bin/sh\necho \"$@\" >" + recorded + ".args\ncat >" + recorded + ".stdin\n"
		if err := os.WriteFile(filepath.Join(bin, "mosquitto_pub"), []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
		sh := exec.Command("sh", "-eu")
		sh.Dir = bundle
		sh.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		sh.Stdin = strings.NewReader(snippet(t, bundle))
		if output, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		if got, want := readFile(t, recorded+".args"), "-h broker.example -p 18883 -V 5 -q 1 -t device/"+id+"/data -s --cafile ca.crt --cert device.crt --key device.key\n"; got != want {
			t.Errorf("mosquitto_pub %s, want %s", got, want)
		}
		checkEnvelope(t, readFile(t, recorded+".stdin"), id, readFile(t, filepath.Join(bundle, "secret")))
	}
}

// checkEnvelope verifies a message as docs/envelope.md describes, with the
// payload signed as it was sent.
func checkEnvelope(t *testing.T, message, id, secret string) {
	t.Helper()
	m := regexp.MustCompile(`\A\{"device_id":"([^"]*)","timestamp":(\d+),"message_id":"([0-9a-f-]{36})","payload":(.*),"signature":"([0-9a-f]{64})"\}\z`).FindStringSubmatch(message)
	if m == nil || m[1] != id || !json.Valid([]byte(message)) {
		t.Fatalf("not an envelope of %s: %s", id, message)
	}
	if seconds, err := strconv.ParseInt(m[2], 10, 64); err != nil || time.Since(time.Unix(seconds, 0)).Abs() > time.Minute {
		t.Errorf("timestamp %s", m[2])
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(m[1] + m[2] + m[3] + m[4]))
	if want := hex.EncodeToString(mac.Sum(nil)); m[5] != want {
		t.Errorf("signature %s, want %s: %s", m[5], want, message)
	}
}

// TestWithMosquitto: the real broker takes the configuration, the certificates
// and the README's commands, all but the plugin.
func TestWithMosquitto(t *testing.T) {
	requireTools(t, "mosquitto", "mosquitto_pub", "mosquitto_sub", "python3")
	port := freePort(t)
	dir := newDir(t, "--port", strconv.Itoa(port))
	device(t, dir, "add", "sensor_001")
	device(t, dir, "add", "stranger")
	bundle := filepath.Join(dir, "devices", "sensor_001")

	conf := filepath.Join(dir, "mosquitto.conf")
	content := regexp.MustCompile(`(?m)^plugin.*\n`).ReplaceAllString(readFile(t, conf), "")
	writeFile(t, conf, content)
	account, err := files.BrokerAccount()
	if err != nil {
		t.Fatal(err)
	}
	if barrier := account.Barrier(conf); barrier != "" {
		t.Logf("run as root, because user %s cannot enter %s", files.BrokerUser, barrier)
		writeFile(t, conf, content+"user root\n")
	}
	var log bytes.Buffer
	broker := exec.Command("mosquitto", "-c", conf)
	broker.Dir = "/"
	broker.Stdout, broker.Stderr = &log, &log
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = broker.Process.Signal(syscall.SIGTERM)
		if err := broker.Wait(); err != nil || t.Failed() {
			t.Errorf("broker: %v\n%s", err, log.String())
		}
	}()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	waitFor(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})

	// A subscriber is notified of a retained message whenever it comes.
	publish := strings.Replace(snippet(t, bundle), " -s ", " -r -s ", 1)
	for _, shell := range []struct{ name, commands string }{
		{"publish", publish},
		{"subscribe", "mosquitto_sub -h localhost -p " + strconv.Itoa(port) + " -t device/sensor_001/data -C 1 -W 10 --cafile ca.crt --cert device.crt --key device.key"},
	} {
		sh := exec.Command("sh", "-eu")
		sh.Dir = bundle
		sh.Stdin = strings.NewReader(shell.commands)
		output, err := sh.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", shell.name, err, output)
		}
		if shell.name == "subscribe" {
			checkEnvelope(t, strings.TrimSuffix(string(output), "\n"), "sensor_001", readFile(t, filepath.Join(bundle, "secret")))
		} else if len(output) != 0 {
			t.Errorf("%s: %s", shell.name, output)
		}
	}
	for name, args := range map[string][]string{
		"no certificate":           {},
		"another's key":            {"--cert", "device.crt", "--key", filepath.Join(dir, "devices/stranger/device.key")},
		"the server's certificate": {"--cert", filepath.Join(dir, "pki/server.crt"), "--key", filepath.Join(dir, "pki/server.key")},
	} {
		cmd := exec.Command("mosquitto_pub", append([]string{"-h", "localhost", "-p", strconv.Itoa(port), "--cafile", "ca.crt", "-t", "x", "-m", "x", "-q", "1"}, args...)...)
		cmd.Dir = bundle
		if output, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%s: let in\n%s", name, output)
		}
	}

	pair, err := tls.LoadX509KeyPair(filepath.Join(bundle, "device.crt"), filepath.Join(bundle, "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(bundle, "ca.crt"))))
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", address, &tls.Config{
			Certificates: []tls.Certificate{pair},
			RootCAs:      roots,
			MinVersion:   version,
			MaxVersion:   version,
		})
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

// snippet is the commands that the README of a bundle says to paste.
func snippet(t *testing.T, bundle string) string {
	t.Helper()
	_, after, _ := strings.Cut(readFile(t, filepath.Join(bundle, "README")), "paste all lines at once:\n\n")
	commands, _, found := strings.Cut(after, "\n\n")
	if !found {
		t.Fatal("no snippet in the README")
	}
	return commands + "\n"
}
