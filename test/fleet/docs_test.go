package fleet

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mosquitto-bouncer/test/harness"
)

// block returns the code block of docs/fleet.md that begins with a line.
func block(t *testing.T, first string) string {
	t.Helper()
	_, text, found := strings.Cut(readable(t, "../../docs/fleet.md"), "\n"+first+"\n")
	code, _, ended := strings.Cut(text, "\n```")
	if !found || !ended {
		t.Fatalf("docs/fleet.md has no code block that begins with %q", first)
	}
	return first + "\n" + code + "\n"
}

// TestDocument: with the nats-server.conf of docs/fleet.md, its users and permissions, a gateway makes the stream and sends, and the
// program in Go reads; neither may do what it is not to do.
func TestDocument(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 1, tls: true})
	n := c.nodes[0]
	root := filepath.Dir(n.dir)
	conf := block(t, "server_name: n1")
	conf = regexp.MustCompile(`(?s)\ncluster \{.*?\n\}\n`).ReplaceAllString(conf, "\n") // one server
	conf = strings.NewReplacer("0.0.0.0:4222", strings.TrimPrefix(n.url, "tls://"), "/var/lib/nats", n.dir, "/etc/nats", root, "100GB", "4GB").Replace(conf)
	must(t, os.WriteFile(filepath.Join(n.dir, "nats-server.conf"), []byte(conf+"log_file: \""+filepath.Join(n.dir, "log")+"\"\n"), 0o600))
	c.start(n)

	cert, key, err := c.ca.IssueDevice("gw-a", time.Now(), time.Hour)
	must(t, err)
	o := c.options("gw-a", 2, map[string]any{"fleet.ca_file": "nats-ca.crt", "fleet.cert_file": "nats.crt", "fleet.key_file": "nats.key"})
	o.Files = map[string]string{"nats-ca.crt": string(c.ca.CertPEM()), "nats.crt": string(cert), "nats.key": string(key)}
	g := harness.New(t, o)
	d := g.Connect(g.Device("gw-a.1"), harness.MQTT5)
	m := d.Sign(harness.Payload)
	if ack := g.Publish(d, d.DataTopic(), 1, m.Bytes); !ack.Accepted() {
		t.Fatal(ack)
	}
	drained(t, g)

	dir := t.TempDir()
	cert, key, err = c.ca.IssueDevice("consumer", time.Now(), time.Hour)
	must(t, err)
	for name, text := range map[string][]byte{"ca.crt": c.ca.CertPEM(), "consumer.crt": cert, "consumer.key": key, "main.go": []byte(block(t, "package main"))} {
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "reader"), filepath.Join(dir, "main.go")).CombinedOutput(); err != nil {
		t.Fatalf("the program in docs/fleet.md: %v\n%s", err, out)
	}
	reader := exec.Command(filepath.Join(dir, "reader"))
	reader.Dir, reader.Env, reader.Stderr = dir, append(os.Environ(), "NATS_URL="+n.url), t.Output()
	out, err := reader.StdoutPipe()
	must(t, err)
	must(t, reader.Start())
	limit := time.AfterFunc(patience, func() { _ = reader.Process.Kill() })
	defer limit.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	_ = reader.Process.Kill()
	_ = reader.Wait()
	if want := "/devices/gw-a.1 " + strings.ToLower(m.MessageID) + " " + harness.Payload + "\n"; err != nil || line != want {
		t.Errorf("the program says %q, %v; want %q", line, err, want)
	}

	// A consumer cannot publish in a device's name, nor change the stream.
	nc, _ := c.client()
	for _, subject := range []string{"bouncer.up.1.x", "$JS.API.STREAM.DELETE.bouncer_up", "$JS.API.STREAM.UPDATE.bouncer_up"} {
		must(t, nc.Publish(subject, []byte("{}")))
		must(t, nc.Flush())
		eventually(t, "the refusal of "+subject, func() bool {
			err := nc.LastError()
			return err != nil && strings.Contains(err.Error(), `"`+subject+`"`)
		})
	}
}
