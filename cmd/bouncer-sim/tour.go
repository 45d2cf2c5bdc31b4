package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// stepTimeout bounds each thing that a step waits for.
const stepTimeout = 5 * time.Second

// fence is a topic of the dashboard's own: what it publishes there comes back after all that the broker handled before.
const fence = "dashboard/fence"

// accepted is the outcome of a message that went the whole way.
const accepted = "accepted"

// tour shows what happens to good and bad messages, and counts them.
type tour struct {
	screen  *screen
	process *broker.Process
	backend *backend.Backend

	sensor, other *device.Device // sensor_001, sensor_002
	sensorClient  *device.V5
	otherClient   *device.V5
	dashboard     *device.V5 // subscribes to what all devices send

	commands *commands

	good    []device.Message // accepted, in order
	results []result
}

// result is one line of the summary.
type result struct {
	number          int // of the step; 0 for none
	what, want, got string
}

func (r result) ok() bool { return r.got == r.want }

func (d *demo) newTour(ctx context.Context, process *broker.Process, b *backend.Backend) (_ *tour, err error) {
	t := &tour{screen: d.screen, process: process, backend: b}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if process.Log().Count(0, broker.Contains("bouncer: ready")) == 0 {
		return nil, errors.New("the broker runs without the plugin: its log has no line \"bouncer: ready\"")
	}
	if t.sensor, err = d.device("sensor_001"); err != nil {
		return nil, err
	}
	if t.other, err = d.device("sensor_002"); err != nil {
		return nil, err
	}
	observer, err := d.observer(t.sensor)
	if err != nil {
		return nil, err
	}
	for _, connection := range []struct {
		client **device.V5
		device *device.Device
		filter []string
	}{
		{&t.sensorClient, t.sensor, []string{t.sensor.ResponseTopic(), t.sensor.CommandTopic()}},
		{&t.otherClient, t.other, []string{t.other.ResponseTopic()}},
		{&t.dashboard, observer, []string{"device/+/data", fence}},
	} {
		if *connection.client, err = connection.device.ConnectV5(ctx); err != nil {
			return nil, err
		}
		for _, filter := range connection.filter {
			if err := (*connection.client).Subscribe(ctx, filter, 1); err != nil {
				return nil, err
			}
		}
	}
	t.commands, err = d.newCommands(t.sensor, t.sensorClient)
	return t, err
}

func (t *tour) close() {
	for _, client := range []*device.V5{t.sensorClient, t.otherClient, t.dashboard} {
		if client != nil {
			_ = client.Close() // the broker may be gone, which is reported elsewhere
		}
	}
}

// run takes the tour. An error means that it could not continue; what went otherwise than expected is in the results.
func (t *tour) run(ctx context.Context) error {
	const warm = `{"temperature":22,"humidity":60}`
	data, otherData := t.sensor.DataTopic(), t.other.DataTopic()

	t.screen.heading("Sensors publish")
	for _, payload := range []string{warm, `{"temperature":22.5,"humidity":58.0}`, `{"room":"Zürich 3","open":[1,2]}`} {
		if err := t.publish(ctx, t.sensorClient, t.sensor, payload); err != nil {
			return err
		}
	}
	if err := t.publish(ctx, t.otherClient, t.other, `{"temperature":19.0}`); err != nil {
		return err
	}

	t.screen.heading("An attacker tries")
	tenMinutesAgo := time.Now().Add(-10 * time.Minute)
	for _, a := range []struct {
		what    string
		client  *device.V5
		topic   string
		message device.Message
		reason  string
	}{
		{"replay: message 1 again, byte for byte", t.sensorClient, data, t.good[0], "replay"},
		{"a message signed ten minutes ago", t.sensorClient, data,
			t.sensor.Sign(warm, device.SignedAt(tenMinutesAgo)), "stale"},
		{"22 changed to 99 under the old signature", t.sensorClient, data,
			t.sensor.Sign(warm).Tampered(`"temperature":22`, `"temperature":99`), "bad_signature"},
		{"sensor_002 speaks as sensor_001", t.otherClient, otherData,
			t.other.Sign(warm, device.As(t.sensor.ID)), "identity_mismatch"},
		{"sensor_002 publishes on sensor_001's topic", t.otherClient, data, t.other.Sign(warm), "topic_mismatch"},
		{"an unsigned publish", t.sensorClient, data, device.Message{Bytes: []byte(warm)}, "malformed"},
	} {
		if err := t.attack(ctx, a.what, a.client, a.topic, a.message, a.reason); err != nil {
			return err
		}
	}
	if err := t.withoutCertificate(ctx); err != nil {
		return err
	}

	if err := t.command(ctx); err != nil {
		return err
	}

	t.screen.heading("The sensors go on")
	if err := t.publish(ctx, t.sensorClient, t.sensor, `{"temperature":23,"humidity":57}`); err != nil {
		return err
	}
	if err := t.publish(ctx, t.otherClient, t.other, `{"temperature":19.5}`); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := t.passFence(waiting); err != nil {
		return err
	}
	t.account()
	t.summary()
	return nil
}

// step announces what is tried next and returns its number.
func (t *tour) step(what string) int {
	n := len(t.results) + 1
	t.screen.line("%s %s", t.screen.in(bold, fmt.Sprintf("%2d", n)), what)
	return n
}

// publish sends a good message and follows it to the backend and back.
func (t *tour) publish(ctx context.Context, client *device.V5, d *device.Device, payload string) error {
	s := t.screen
	n := t.step(d.ID + " publishes to " + d.DataTopic())
	s.field("payload", "", payload)
	m := d.Sign(payload)
	before := len(client.Inbox().On(d.ResponseTopic()))
	begin := time.Now()
	ack, err := client.Publish(ctx, d.DataTopic(), 1, false, m.Bytes)
	if err != nil {
		return fmt.Errorf("message %d: %w", n, err)
	}
	r := result{number: n, what: "a signed message of " + d.ID, want: accepted}
	defer func() { t.results = append(t.results, r) }()
	if !ack.Accepted() {
		r.got = "refused"
		s.field("verdict", red, "refused: PUBACK "+ack.String())
		return ctx.Err()
	}
	t.good = append(t.good, m)
	s.field("verdict", green, "accepted: PUBACK "+ack.String())

	waiting, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	request, err := t.backend.WaitMessage(waiting, m.MessageID)
	if err != nil {
		r.got = "accepted, not at the backend"
		s.field("backend", red, "nothing within "+stepTimeout.String())
		return ctx.Err()
	}
	s.field("backend", "", request.Method+" "+request.Path)
	s.field("", "", "ce-id "+request.MessageID())
	if !bytes.Equal(request.Body, m.Payload) {
		r.got = "another payload at the backend"
		s.field("", red, "body  "+string(request.Body))
		return ctx.Err()
	}
	s.field("", "", "body  "+string(request.Body))

	responses, err := client.Inbox().WaitCount(waiting, d.ResponseTopic(), before+1)
	if err != nil {
		r.got = "accepted, no response"
		s.field("response", red, "nothing within "+stepTimeout.String())
		return ctx.Err()
	}
	response := responses[before]
	if want := fmt.Sprintf(`{"status":"ok","received":%d}`, request.Seq); string(response.Payload) != want {
		r.got = "another's response"
		s.field("response", red, string(response.Payload))
		return ctx.Err()
	}
	r.got = accepted
	s.field("response", "", fmt.Sprintf("%s  after %.1f ms", response.Payload, response.At.Sub(begin).Seconds()*1000))
	return nil
}

var (
	reasonIn = regexp.MustCompile(` reason=(\S+)`)
	topicIn  = regexp.MustCompile(` topic=(\S+)`)
)

// attack sends a bad message and makes sure that it is refused, for this reason, and not delivered.
func (t *tour) attack(ctx context.Context, what string, client *device.V5, topic string, m device.Message, want string) error {
	s := t.screen
	n := t.step(what)
	mark, requests, messages := t.process.Log().Mark(), t.backend.Count(), len(t.dashboard.Inbox().On(topic))
	ack, err := client.Publish(ctx, topic, 1, false, m.Bytes)
	if err != nil {
		return fmt.Errorf("attack %d: %w", n, err)
	}
	r := result{number: n, what: what, want: "refused: " + want}
	defer func() { t.results = append(t.results, r) }()
	if ack.Accepted() {
		r.got = accepted
		s.field("verdict", red, "accepted: PUBACK "+ack.String())
		return ctx.Err()
	}

	waiting, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	line, err := t.process.WaitLog(waiting, mark, broker.Contains("bouncer: refused ", " topic="+topic+" "))
	reason := "no reason in the broker's log"
	if found := reasonIn.FindStringSubmatch(line); err == nil && found != nil {
		reason = found[1]
	}
	r.got = "refused: " + reason
	s.field("verdict", yellow, fmt.Sprintf("refused: PUBACK %s, reason=%s", ack, reason))

	if err := t.passFence(waiting); err != nil {
		return err
	}
	reached := "none: no request at the backend, no message at a subscriber"
	st := dim
	switch {
	case len(t.dashboard.Inbox().On(topic)) > messages:
		reached, r.got, st = "a subscriber", "refused, yet delivered to a subscriber", red
	case t.backend.Count() > requests:
		reached, r.got, st = "the backend", "refused, yet sent to the backend", red
	}
	s.field("reached", st, reached)
	return ctx.Err()
}

// passFence waits until the dashboard has got everything that the broker delivered to it before.
func (t *tour) passFence(ctx context.Context) error {
	passed := len(t.dashboard.Inbox().On(fence))
	if _, err := t.dashboard.Publish(ctx, fence, 0, false, nil); err != nil {
		return err
	}
	_, err := t.dashboard.Inbox().WaitCount(ctx, fence, passed+1)
	return err
}

// withoutCertificate connects as one who has the network and nothing else.
func (t *tour) withoutCertificate(ctx context.Context) error {
	s := t.screen
	const what = "a connection without certificate"
	r := result{number: t.step(what), what: what, want: "refused: no certificate"}
	defer func() { t.results = append(t.results, r) }()
	waiting, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	err := handshake(waiting, t.sensor.Anonymous())
	switch {
	case err == nil:
		r.got = "connected"
		s.field("verdict", red, "the broker took the connection")
	case strings.Contains(err.Error(), "remote error: tls: "):
		r.got = r.want
		_, alert, _ := strings.Cut(err.Error(), "remote error: ")
		s.field("verdict", yellow, "refused by the broker: "+alert)
		s.field("reached", dim, "none: there is no connection to publish on")
	default:
		r.got = err.Error()
		s.field("verdict", red, err.Error())
	}
	return ctx.Err()
}

// handshake completes a TLS handshake, which in TLS 1.3 the server may still refuse after the client's part is done: it
// says so on the first read. nil means that the server stayed silent for a second, waiting for a CONNECT.
func handshake(ctx context.Context, d *device.Device) error {
	conn, err := d.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// account compares everything that reached backend and subscriber with what was accepted. Each device's last message
// has come through, and messages of one device stay in order; the dashboard has passed the fence: nothing is still under
// way.
func (t *tour) account() {
	want := map[string]bool{}
	for _, m := range t.good {
		want[string(m.Bytes)] = true
	}
	requests := t.backend.Count()
	var messages, foreign int
	for _, m := range t.dashboard.Inbox().All() {
		switch {
		case m.Topic == fence:
		case want[string(m.Payload)]:
			messages++
		default:
			foreign++
		}
	}
	r := result{what: "nothing else got through", want: "nothing else", got: "nothing else"}
	if requests != len(t.good) || messages != len(t.good) || foreign > 0 {
		r.got = fmt.Sprintf("backend %d, subscriber %d, not %d", requests, messages+foreign, len(t.good))
	}
	t.results = append(t.results, r)
}

// summary prints the results.
func (t *tour) summary() {
	s := t.screen
	s.heading("Summary")
	right := 0
	for _, r := range t.results {
		number := "  "
		if r.number > 0 {
			number = fmt.Sprintf("%2d", r.number)
		}
		if r.ok() {
			right++
			s.line("%s  %-44s %-26s %s", number, r.what, r.got, s.in(green, "ok"))
			continue
		}
		s.line("%s  %-44s %s", number, r.what, s.in(red, clip(r.got, width-49)))
		s.line("    %-44s %s", "", s.in(red, clip("expected "+r.want, width-49)))
	}
	verdict, st := fmt.Sprintf("%d of %d as expected", right, len(t.results)), green
	if right < len(t.results) {
		st = red
	}
	s.line("\n%s", s.in(st, verdict))
}

// failure is the error of a tour in which something was not as it should be.
func (t *tour) failure() error {
	wrong := 0
	for _, r := range t.results {
		if !r.ok() {
			wrong++
		}
	}
	if wrong == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d outcomes are not as they should be", wrong, len(t.results))
}

// live lets the sensor continue and shows what else happens, until ctx is done.
func (t *tour) live(ctx context.Context) error {
	s := t.screen
	// From here on sensor_002 is the user's: a device has one connection.
	_ = t.otherClient.Close()
	t.otherClient = nil
	s.line("The sensor continues every %v. Ctrl-C ends the tour.\n", liveInterval)
	events := make(chan string)
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	own := map[string]bool{}
	go t.watchRefusals(watching, events)
	go t.watchCommands(watching, events)
	requests := make(chan *backend.Request)
	go t.watchBackend(watching, requests)
	every := time.NewTicker(liveInterval)
	defer every.Stop()
	for n := 0; ; n++ {
		m := t.sensor.Sign(reading(n))
		own[m.MessageID] = true
		before := len(t.sensorClient.Inbox().On(t.sensor.ResponseTopic()))
		begin := time.Now()
		ack, err := t.sensorClient.Publish(ctx, t.sensor.DataTopic(), 1, false, m.Bytes)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		waiting, done := context.WithTimeout(ctx, liveInterval)
		responses, err := t.sensorClient.Inbox().WaitCount(waiting, t.sensor.ResponseTopic(), before+1)
		done()
		response := "no response yet"
		if err == nil {
			response = fmt.Sprintf("response %.1f ms", responses[before].At.Sub(begin).Seconds()*1000)
		}
		s.event(begin, "", fmt.Sprintf("%s  PUBACK 0x%02x  %s", m.Payload, ack.Code, response))
		for waiting := true; waiting; {
			select {
			case event := <-events:
				s.event(time.Now(), yellow, event)
			case r := <-requests:
				if own[r.MessageID()] {
					delete(own, r.MessageID())
					continue
				}
				s.event(r.At, green, fmt.Sprintf("the backend got %s of %s", r.Body, r.Device))
			case <-t.process.Done():
				return t.process.Ended()
			case <-every.C:
				waiting = false
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// watchRefusals sends what the plugin's log says of every refused publish.
func (t *tour) watchRefusals(ctx context.Context, events chan<- string) {
	refused := broker.Contains("bouncer: refused ")
	for mark := t.process.Log().Mark(); ; {
		line, after, err := t.process.Log().Next(ctx, mark, refused)
		if err != nil {
			return
		}
		mark = after
		event := "refused"
		for _, field := range []*regexp.Regexp{reasonIn, topicIn} {
			event += field.FindString(line)
		}
		select {
		case events <- event:
		case <-ctx.Done():
			return
		}
	}
}

// watchBackend sends every request that comes from now on.
func (t *tour) watchBackend(ctx context.Context, requests chan<- *backend.Request) {
	for seen := t.backend.Count(); ; seen++ {
		all, err := t.backend.Wait(ctx, seen+1)
		if err != nil {
			return
		}
		select {
		case requests <- all[seen]:
		case <-ctx.Done():
			return
		}
	}
}
