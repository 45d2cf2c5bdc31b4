package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"mosquitto-bouncer/plugin/fleetstate"
	"mosquitto-bouncer/plugin/testkit"
)

func TestSubject(t *testing.T) {
	for device, want := range map[string]string{
		"sensor_001": "sensor_001", "a.b": "a%2Eb", "..": "%2E%2E", "*": "%2A", ">": "%3E", "a b": "a%20b", "%2E": "%252E", "a:b-C": "a:b-C", "\xff\x00": "%FF%00",
	} {
		if got := Encode(device); got != want {
			t.Errorf("%q is %q, want %q", device, got, want)
		}
		subject := Subject("bouncer", 16, device)
		if strings.Count(subject, ".") != 3 || strings.ContainsAny(subject, "*> \x00") {
			t.Errorf("%q has the subject %q", device, subject)
		}
	}
	// The partitions are an interface: these never change.
	for device, want := range map[string]string{
		"sensor_001": "bouncer.up.7.sensor_001", "sensor_002": "bouncer.up.10.sensor_002", "a.b": "bouncer.up.12.a%2Eb", "": "bouncer.up.5.",
	} {
		if got := Subject("bouncer", 16, device); got != want {
			t.Errorf("%q: %q, want %q", device, got, want)
		}
	}
	used := map[int]int{}
	for i := range 16_000 {
		used[Partition(fmt.Sprintf("sensor_%05d", i), 16)]++
	}
	for p := range 16 {
		if n := used[p]; n < 800 || n > 1200 {
			t.Errorf("partition %d has %d of 16000 devices", p, n)
		}
	}
	if Partition("x", 1) != 0 {
		t.Error("one partition is 0")
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"2.15.0": true, "2.15.2": true, "2.15.0-RC.1": true, "2.16.0": true, "3.0.0": true, "2.14.9": false, "2.9.10": false, "1.99.0": false, "": false, "2": false,
		"x.15.0": false, "2.x": false,
	} {
		if newEnough(version) != want {
			t.Errorf("%q: %v", version, !want)
		}
	}
}

// options are those of a fleet whose servers are not there.
func options(t *testing.T, servers ...string) Options {
	return Options{
		Name: "gw-a", Servers: servers, Prefix: "bouncer", Partitions: 16, Replicas: 3, Dedup: 20 * time.Minute, MaxBytes: 1 << 30,
		MaxMessage: 1 << 16, Timeout: 5 * time.Second, StateDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// TestFits: the stream that is made fits, and so do better ones. What does not is in the integration tests.
func TestFits(t *testing.T) {
	o := options(t)
	made := o.wanted()
	better := made
	better.Replicas, better.Duplicates, better.MaxBytes, better.MaxAge = 5, time.Hour, 1, 0
	for _, c := range []jetstream.StreamConfig{made, better} {
		if err := o.fits(&c); err != nil {
			t.Errorf("%v", err)
		}
	}
	for _, change := range []func(*jetstream.StreamConfig){
		func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{Name: "x"} },
		func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "x"}} },
		func(c *jetstream.StreamConfig) { c.NoAck = true },
		func(c *jetstream.StreamConfig) { c.Sealed = true },
		func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		func(c *jetstream.StreamConfig) { c.Replicas = 2 },
	} {
		c := made
		change(&c)
		if _, is := errors.AsType[*Mismatch](o.fits(&c)); !is {
			t.Errorf("%+v is taken", c)
		}
	}
	if err := o.serverFits("2.15.0", 1<<16+HeaderRoom); err != nil {
		t.Error(err)
	}
	for _, err := range []error{o.serverFits("2.14.0", 1<<20), o.serverFits("2.15.0", 1<<16)} {
		if _, is := errors.AsType[*Mismatch](err); !is {
			t.Errorf("%v", err)
		}
	}
}

// TestErrors: every error of NATS is a sentence, and only those that an operator must correct are mismatches.
func TestErrors(t *testing.T) {
	f := New(options(t))
	api := func(code int) error {
		return fmt.Errorf("nats: %w", &jetstream.APIError{Code: 503, ErrorCode: jetstream.ErrorCode(code), Description: "description"})
	}
	for _, test := range []struct {
		err      error
		code     int
		mismatch bool
		want     string
	}{
		{api(10077), 10077, false, "the stream is full"},
		{api(10074), 10074, true, "NATS refuses (error 10074)"},
		{api(10065), 10065, true, "NATS refuses (error 10065)"},
		{api(10039), 10039, true, "NATS refuses"},
		{jetstream.ErrJetStreamNotEnabled, 10076, false, "NATS refuses"},
		{api(10008), 10008, false, "NATS refuses (error 10008)"},
		{api(10005), 10005, false, "NATS refuses (error 10005)"},
		{nats.ErrNoResponders, 0, false, "NATS has no leader for the stream"},
		{jetstream.ErrNoStreamResponse, 0, false, "NATS has no leader for the stream"},
		{context.DeadlineExceeded, 0, false, "no answer of NATS within 5s"},
		{nats.ErrTimeout, 0, false, "no answer of NATS within 5s"},
		{nats.ErrReconnectBufExceeded, 0, false, "the connection to NATS was lost"},
		{context.Canceled, 0, false, "the connection to NATS was lost"},
		{errors.New("else"), 0, false, "NATS: else"},
	} {
		if got := code(test.err); got != test.code {
			t.Errorf("%v: code %d, want %d", test.err, got, test.code)
		}
		if got := f.tell(test.err).Error(); !strings.HasPrefix(got, test.want) {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
		if _, is := errors.AsType[*Mismatch](f.explain(test.err)); is != test.mismatch {
			t.Errorf("%v: a mismatch: %v", test.err, is)
		}
	}
	f.complaint.Store(&complaint{time.Now(), "Permissions Violation"})
	if got := f.tell(context.DeadlineExceeded).Error(); !strings.HasSuffix(got, "; NATS says: Permissions Violation") {
		t.Error(got)
	}
	if got := printable("nats: a\x00b\n" + strings.Repeat("x", 1000)); len(got) > maxSaid || strings.ContainsAny(got, "\x00\n") || got[0] != 'a' {
		t.Errorf("%q", got)
	}
}

// TestAway: without NATS Start is quick and no error, the state says why, and Close ends everything.
func TestAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := "nats://" + l.Addr().String()
	_ = l.Close()
	hung, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	for name, server := range map[string]string{"refused": free, "hung": "nats://" + hung.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			o := options(t, server)
			f := New(o)
			begin := time.Now()
			if err := f.Start(); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d > startWithin+2*time.Second {
				t.Errorf("Start took %v", d)
			}
			if outcome, _, err := f.Publish(t.Context(), &Record{Device: "a", ID: "a:1", AcceptedAt: time.Now()}); outcome != Unknown || err == nil ||
				!strings.Contains(err.Error(), "NATS ") {
				t.Errorf("%v %v", outcome, err)
			}
			testkit.Eventually(t, "the state", func() bool {
				s, err := fleetstate.Load(o.StateDir)
				return err == nil && s != nil && strings.HasPrefix(s.Why, "NATS ")
			})
			if err := f.Health(); err != nil {
				t.Errorf("unhealthy: %v", err)
			}
			begin = time.Now()
			f.Close()
			if d := time.Since(begin); d > 3*time.Second {
				t.Errorf("Close took %v", d)
			}
			if s, err := fleetstate.Load(o.StateDir); s != nil || err != nil {
				t.Errorf("left: %v %v", s, err)
			}
		})
	}
}

// TestBadSettings: what nats.go does not take refuses the start.
func TestBadSettings(t *testing.T) {
	f := New(options(t, "nats://[::1"))
	defer f.Close()
	if err := f.Start(); err == nil || !strings.Contains(err.Error(), "correct [fleet]") {
		t.Errorf("%v", err)
	}
	if err := f.Health(); err == nil {
		t.Error("healthy")
	}
}

// TestNotStarted: Close does no harm without Start, and ends the wait of a message.
func TestNotStarted(t *testing.T) {
	f := New(options(t, "nats://127.0.0.1:1"))
	done := make(chan error)
	go func() {
		_, _, err := f.Publish(context.Background(), &Record{Device: "a", AcceptedAt: time.Now()})
		done <- err
	}()
	f.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(5 * time.Second):
		t.Error("the message still waits")
	}
}

// TestPayloadLowered: max_payload that is lowered on a connection gives up no message, and is found.
func TestPayloadLowered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lower := make(chan struct{})
	go func() { // a NATS server that answers nothing but pings
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		info := func(maxPayload int) {
			fmt.Fprintf(conn, "INFO {\"server_id\":\"n1\",\"version\":\"2.15.2\",\"headers\":true,\"max_payload\":%d,\"proto\":1}\r\n", maxPayload)
		}
		info(1 << 20)
		go func() { <-lower; info(1 << 10) }()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			if lines.Text() == "PING" {
				fmt.Fprint(conn, "PONG\r\n")
			}
		}
	}()
	f := New(options(t, "nats://"+l.Addr().String()))
	defer f.Close()
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	f.right.Store(true)
	close(lower)
	r := &Record{Device: "a", ID: "a:1", AcceptedAt: time.Now(), Header: map[string][]string{}, Payload: make([]byte, 1<<11)}
	testkit.Eventually(t, "max_payload is found", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if o, _, err := f.Publish(ctx, r); o != Unknown {
			t.Fatalf("%v %v", o, err)
		}
		err := f.Health()
		return err != nil && strings.Contains(err.Error(), "max_payload")
	})
}

// TestSearched: a search goes on where it was, what follows a message that was stored is behind it, and nothing is kept of
// devices without a backlog.
func TestSearched(t *testing.T) {
	var s searched
	expect := func(device, id string, seq uint64, read int) {
		t.Helper()
		if a, b := s.from(device, id); a != seq || b != read {
			t.Errorf("%s: %d %d, want %d %d", id, a, b, seq, read)
		}
	}
	expect("a", "1", 0, 0)
	s.read("a", "1", 7, 3)
	expect("a", "1", 7, 3)
	expect("a", "2", 0, 0)
	expect("b", "1", 0, 0)
	s.stored("a", 9, true)
	expect("a", "2", 9, 0)
	s.stored("a", 10, false)
	expect("a", "2", 0, 0)
	if len(s.devices) != 0 {
		t.Errorf("%d devices", len(s.devices))
	}
	for i := range maxSearched + 1 {
		s.stored(fmt.Sprint(i), 1, true)
	}
	if len(s.devices) > maxSearched {
		t.Errorf("%d devices", len(s.devices))
	}
	s.forget()
	expect(fmt.Sprint(maxSearched), "1", 0, 0)
}
