// Package outage has broker and backend in containers of their own, and what happens to containers: the backend's network is
// cut and comes back, the broker is stopped and another container continues with its volume. Everything has the run's number in
// its name, and is removed at the end.
//
// Without a Docker engine the test is skipped, or fails when DOCKER is "required". RELEASE names the Debian release.
package outage

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	root     = "../.."
	patience = 30 * time.Second // for what must come within moments
)

// A rig is the two containers, with one network and one volume.
type rig struct {
	*testing.T
	run     string // the name of network and volume, and how the containers' names begin
	image   string
	program string // a directory with the library and the programs, copied into each container
}

// docker runs a command, which must succeed, and returns its standard output.
func (r *rig) docker(args ...string) string {
	r.Helper()
	out, err := docker(args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

func docker(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	command := exec.Command("docker", args...)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// start brings up the network, the volume and the image. All but the image is removed at the end of the test.
func start(t *testing.T, release string) *rig {
	if out, err := exec.Command(root+"/scripts/base-image", release).CombinedOutput(); err != nil {
		t.Fatalf("scripts/base-image %s: %v\n%s", release, err, out)
	}
	r := &rig{T: t, run: fmt.Sprintf("mosquitto-bouncer-outage-%d", os.Getpid()), image: "mosquitto-bouncer-test:" + release, program: t.TempDir()}
	r.docker("build", "--quiet", "--build-arg", "RELEASE="+release, "--tag", r.image, root+"/test/container")
	for _, name := range []string{"mosquitto_bouncer.so", "bouncerctl", "bouncer-sim"} {
		text, err := os.ReadFile(filepath.Join(root, "build", name))
		if err != nil {
			t.Fatalf("%v; run make build", err)
		}
		if err := os.WriteFile(filepath.Join(r.program, name), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(r.program, 0o755); err != nil { // the broker's account reads it in the container
		t.Fatal(err)
	}
	t.Cleanup(r.tidy)
	stop := make(chan os.Signal, 1) // an interrupted test has no Cleanup
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		r.remove()
		os.Exit(130)
	}()
	r.docker("network", "create", "--internal", r.run)
	r.docker("volume", "create", r.run)
	return r
}

// tidy shows the logs of a test that failed, and removes all that start and container made.
func (r *rig) tidy() {
	for _, name := range []string{"broker", "backend"} {
		if r.Failed() {
			if log, err := r.log(name); err == nil {
				lines := strings.Split(log, "\n")
				r.Logf("the %s's log:\n%s", name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
		}
	}
	if err := r.remove(); err != nil {
		r.Error(err)
	}
}

func (r *rig) remove() error {
	var failed []error
	for _, remove := range [][]string{
		{"rm", "-fv", r.run + "-broker", r.run + "-backend"}, {"volume", "rm", "-f", r.run}, {"network", "rm", r.run},
	} {
		if _, err := docker(remove...); err != nil && !strings.Contains(strings.ToLower(err.Error()), "no such") {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// container runs a command in a container of this name, which is also its name in the network.
func (r *rig) container(name string, command ...string) {
	r.Helper()
	r.docker(append([]string{
		"create", "--init", "--name", r.run + "-" + name, "--network", r.run, "--network-alias", name,
		"--volume", r.run + ":/srv", "--env", "PATH=/program:/usr/sbin:/usr/bin:/bin", r.image,
	}, command...)...)
	r.docker("cp", r.program, r.run+"-"+name+":/program") // copied, for the engine may see other files than we do
	r.docker("start", r.run+"-"+name)
}

// log is what a container wrote.
func (r *rig) log(name string) (string, error) {
	out, err := exec.Command("docker", "logs", r.run+"-"+name).CombinedOutput()
	return string(out), err
}

// until waits for a condition.
func (r *rig) until(what string, met func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !met(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("not within %v: %s", patience, what)
		}
	}
}

var eventID = regexp.MustCompile(`ce-id=\S+`)

// posted counts the different messages that the backend has got.
func (r *rig) posted() int {
	r.Helper()
	log, err := r.log("backend")
	if err != nil {
		r.Fatal(err)
	}
	ids := map[string]bool{}
	for _, id := range eventID.FindAllString(log, -1) {
		ids[id] = true
	}
	return len(ids)
}

// arrived waits until the backend has got this many messages.
func (r *rig) arrived(n int, when string) {
	r.Helper()
	r.until(fmt.Sprintf("%s: %d messages with the backend", when, n), func() bool { return r.posted() >= n })
}

// serving waits until the broker says that it runs.
func (r *rig) serving() {
	r.Helper()
	running := regexp.MustCompile(`mosquitto version .* running`)
	r.until("the broker runs", func() bool {
		log, err := r.log("broker")
		return err == nil && running.MatchString(log)
	})
}

// load sends ten messages a second, each of which must be accepted.
func (r *rig) load(seconds int, when string) {
	r.Helper()
	if out, err := exec.Command("docker", "exec", r.run+"-broker", "bouncer-sim", "load", "--dir", "/srv/bouncer/devices",
		"--rate", "10", "--window", "1", "--duration", fmt.Sprint(seconds, "s")).CombinedOutput(); err != nil {
		r.Fatalf("%s: bouncer-sim load: %v\n%s", when, err, out)
	}
}

// TestOutageInContainers cuts the backend's network under load, then gives the broker's volume to another container.
func TestOutageInContainers(t *testing.T) {
	if _, err := docker("version"); err != nil {
		if os.Getenv("DOCKER") == "required" {
			t.Fatalf("no Docker engine answers; install docker.io and start it, or join the group docker: %v", err)
		}
		t.Skip("no Docker engine answers")
	}
	r := start(t, cmp.Or(os.Getenv("RELEASE"), "bookworm"))
	r.container("backend", "bouncer-sim", "backend", "--listen", "0.0.0.0:5000")
	r.container("broker", "sh", "-euc", `
		bouncerctl init --dir /srv/bouncer --host localhost --backend "http://backend:5000/device/{device_id}/data"
		bouncerctl device add sensor_001 --config /srv/bouncer/bouncer.toml
		chmod 755 /srv/bouncer
		exec mosquitto -c /srv/bouncer/mosquitto.conf`)
	r.serving()
	r.load(2, "at first")
	r.arrived(15, "of the first 20")

	before := r.posted()
	r.docker("network", "disconnect", r.run, r.run+"-backend")
	r.load(3, "with the backend's network cut")
	time.Sleep(time.Second) // longer than a delivery takes: none must come
	if n := r.posted(); n != before {
		t.Fatalf("%d messages came through a network that is cut", n-before)
	}
	r.docker("network", "connect", "--alias", "backend", r.run, r.run+"-backend")
	r.arrived(before+25, "after the outage")

	r.docker("stop", "--time", "20", r.run+"-broker")
	if code := r.docker("inspect", "--format", "{{.State.ExitCode}}", r.run+"-broker"); code != "0" {
		t.Fatalf("the broker stopped with status %s", code)
	}
	if log, err := r.log("broker"); err != nil || !strings.Contains(log, "bouncer: stopped") {
		t.Fatalf("the plugin did not say that it has stopped: %v", err)
	}
	before = r.posted()
	r.docker("rm", r.run+"-broker")
	r.container("broker", "sh", "-euc", "exec mosquitto -c /srv/bouncer/mosquitto.conf")
	r.serving()
	r.load(2, "in another container")
	r.arrived(before+15, "in another container")
}
