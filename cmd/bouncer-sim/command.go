package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	library "mosquitto-bouncer/device/go"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// commands is the part of the tour that goes the other way: from the backend to a device.
type commands struct {
	demo     *demo
	url      string // of the plugin's HTTP listener
	token    string
	verifier *device.CommandVerifier // the sensor's
	client   *device.V5              // the sensor's
}

func (d *demo) newCommands(sensor *device.Device, client *device.V5) (*commands, error) {
	token, err := os.ReadFile(filepath.Join(d.dir, "http-token"))
	if err != nil {
		return nil, fmt.Errorf("%w; scripts/run makes it", err)
	}
	return &commands{
		demo: d, url: "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(d.httpPort)), token: string(bytes.TrimSpace(token)),
		verifier: sensor.NewCommandVerifier(), client: client,
	}, nil
}

// An outcome is what the HTTP listener says of a command.
type outcome struct {
	status int
	ID     string
	State  string
	Result json.RawMessage
}

// send has the backend send a command and wait for the device's answer.
func (c *commands) send(ctx context.Context, device, body string) (o outcome, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/devices/"+device+"/commands?wait=5s", bytes.NewReader([]byte(body)))
	if err != nil {
		return o, err
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return o, err
	}
	defer answer.Body.Close()
	o.status = answer.StatusCode
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(text, &o)
}

// command has a command go down to the sensor and the answer come back, then shows who else cannot command it.
func (t *tour) command(ctx context.Context) error {
	t.screen.heading("The backend commands a sensor")
	envelope, err := t.obey(ctx, `{"set":"interval","seconds":30}`)
	if err != nil {
		return err
	}
	err = t.attack(ctx, "another client publishes a command", t.dashboard, t.sensor.CommandTopic(),
		device.Message{Bytes: []byte(`{"set":"interval","seconds":0}`)}, "forbidden_topic")
	if err != nil || envelope == nil {
		return err
	}
	return t.deceive(ctx, envelope)
}

// obey returns the command as the sensor received it; nil: it did not.
func (t *tour) obey(ctx context.Context, body string) ([]byte, error) {
	s, c := t.screen, t.commands
	n := t.step("the backend posts a command for " + t.sensor.ID)
	s.field("command", "", body)
	r := result{number: n, what: "a command to " + t.sensor.ID, want: "succeeded", got: "no command came"}
	defer func() { t.results = append(t.results, r) }()

	waiting, cancel := context.WithTimeout(ctx, 2*stepTimeout)
	defer cancel()
	begin := time.Now()
	answered := make(chan error, 1)
	var o outcome
	go func() {
		var err error
		o, err = c.send(waiting, t.sensor.ID, body)
		answered <- err
	}()
	got, err := c.client.Inbox().WaitCount(waiting, t.sensor.CommandTopic(), 1)
	if err != nil {
		s.field("device", red, "no command within "+(2*stepTimeout).String())
		return nil, errors.Join(ctx.Err(), <-answered)
	}
	command, err := c.verifier.Verify(got[0].Payload, time.Now())
	if err != nil {
		r.got = "refused: " + err.Error()
		s.field("device", red, r.got)
		return nil, <-answered
	}
	s.field("device", green, fmt.Sprintf("signature, time and id are good  after %.1f ms", got[0].At.Sub(begin).Seconds()*1000))
	answer := t.sensor.Answer(command.ID, "succeeded", `{"seconds":30}`)
	if _, err := c.client.Publish(waiting, t.sensor.ResultTopic(), 1, false, answer.Bytes); err != nil {
		return nil, err
	}
	if err := <-answered; err != nil {
		return nil, err
	}
	r.got = o.State
	s.field("backend", green, fmt.Sprintf("%d %s %s  after %.1f ms", o.status, o.State, o.Result, time.Since(begin).Seconds()*1000))
	return got[0].Payload, ctx.Err()
}

// deceive lets the sensor connect to a broker that is in an attacker's hands: one without the plugin, which delivers what
// it is given. The sensor is on its own now.
func (t *tour) deceive(ctx context.Context, genuine []byte) error {
	rogue, addr, err := t.commands.demo.startRogue(ctx)
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		_ = rogue.Stop(stopping) // it has served
	}()
	victim, err := t.sensor.Via(addr).ConnectV5(ctx)
	if err != nil {
		return err
	}
	defer victim.Close()
	topic := t.sensor.CommandTopic()
	if err := victim.Subscribe(ctx, topic, 1); err != nil {
		return err
	}
	attacker, err := t.other.Via(addr).ConnectV5(ctx)
	if err != nil {
		return err
	}
	defer attacker.Close()
	for i, a := range []struct {
		what    string
		message []byte
		want    library.Reason
	}{
		{"a hijacked broker repeats that command", genuine, library.Repeated},
		{"... and with 30 changed to 1", bytes.Replace(genuine, []byte(":30"), []byte(":1"), 1), library.Forged},
	} {
		r := result{number: t.step(a.what), what: a.what, want: "refused: " + string(a.want)}
		waiting, cancel := context.WithTimeout(ctx, stepTimeout)
		_, err := attacker.Publish(waiting, topic, 1, false, a.message)
		var got []device.Received
		if err == nil {
			got, err = victim.Inbox().WaitCount(waiting, topic, i+1)
		}
		cancel()
		if err != nil {
			return err
		}
		switch _, err := t.commands.verifier.Verify(got[i].Payload, time.Now()); {
		case library.ReasonOf(err) == a.want:
			r.got = r.want
			t.screen.field("device", yellow, "refused: "+err.Error())
		case err == nil:
			r.got = "obeyed"
			t.screen.field("device", red, "obeyed")
		default:
			r.got = err.Error()
			t.screen.field("device", red, "refused: "+err.Error())
		}
		t.results = append(t.results, r)
	}
	return ctx.Err()
}

// startRogue runs a broker with the server's certificate, but without the plugin.
func (d *demo) startRogue(ctx context.Context) (*broker.Process, string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	addr := net.JoinHostPort("localhost", strconv.Itoa(listener.Addr().(*net.TCPAddr).Port))
	text := fmt.Sprintf("log_dest stderr\nallow_anonymous true\nlistener %d 127.0.0.1\nrequire_certificate true\ncafile %s\ncertfile %s\nkeyfile %s\n",
		listener.Addr().(*net.TCPAddr).Port, absolute(filepath.Join(d.dir, "pki", "ca.crt")),
		absolute(filepath.Join(d.dir, "pki", "server.crt")), absolute(filepath.Join(d.dir, "pki", "server.key")))
	credential, err := account(filepath.Join(d.dir, "mosquitto.conf"))
	if err != nil {
		return nil, "", err
	}
	if credential == nil && os.Getuid() == 0 {
		text += "user root\n"
	}
	conf := filepath.Join(d.dir, "hijacked.conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, "", err
	}
	if err := listener.Close(); err != nil {
		return nil, "", err
	}
	binary, err := broker.Find()
	if err != nil {
		return nil, "", err
	}
	process, err := broker.Command{Binary: binary, Config: conf, Credential: credential, Log: &broker.Log{}}.Start()
	if err != nil {
		return nil, "", err
	}
	ready, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := process.Ready(ready); err != nil {
		return nil, "", errors.Join(fmt.Errorf("starting the hijacked broker: %w", err), process.Kill())
	}
	return process, addr, nil
}

// watchCommands has the sensor take commands, and tells of each, until ctx is done.
func (t *tour) watchCommands(ctx context.Context, events chan<- string) {
	client := t.commands.client
	topic := t.sensor.CommandTopic()
	for seen := len(client.Inbox().On(topic)); ; seen++ {
		got, err := client.Inbox().WaitCount(ctx, topic, seen+1)
		if err != nil {
			return
		}
		event := ""
		if command, err := t.commands.verifier.Verify(got[seen].Payload, time.Now()); err != nil {
			event = "the sensor refused a command: " + err.Error()
		} else {
			event = "the sensor obeyed " + string(command.Body)
			if _, err := client.Publish(ctx, t.sensor.ResultTopic(), 1, false, t.sensor.Answer(command.ID, "succeeded", "").Bytes); err != nil {
				return
			}
		}
		select {
		case events <- event:
		case <-ctx.Done():
			return
		}
	}
}
