package broker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// helper is the environment variable that makes this test's binary the parent in TestBrokerDiesWithParent.
const helper = "BROKER_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helper) != "" {
		if err := orphan(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func limit(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func identity(t *testing.T, b *broker.Broker, id string) *device.Device {
	t.Helper()
	d, err := b.Device(id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConnections(t *testing.T) {
	ctx := limit(t)
	b := broker.Start(t, broker.Options{WithoutPlugin: true})
	d := identity(t, b, "sensor_001")
	v5, err := d.ConnectV5(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer v5.Close()
	v3, err := d.ConnectV3(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer v3.Close()
	for _, c := range []device.Client{v5, v3} {
		if err := c.Subscribe(ctx, "greetings/#", 2); err != nil {
			t.Fatal(err)
		}
	}
	for qos := byte(0); qos <= 2; qos++ {
		for name, c := range map[string]device.Client{"v5": v5, "v3": v3} {
			topic := fmt.Sprintf("greetings/%s/%d", name, qos)
			ack, err := c.Publish(ctx, topic, qos, false, []byte("hello"))
			if err != nil || ack.Code != device.Success {
				t.Fatalf("%s: %v, %v", topic, ack, err)
			}
			for _, to := range []device.Client{v5, v3} {
				got, err := to.Inbox().WaitCount(ctx, topic, 1)
				if err != nil || string(got[0].Payload) != "hello" || got[0].QoS != qos {
					t.Fatalf("%s: got %+v, %v", topic, got, err)
				}
			}
		}
	}
	if ack, err := v5.Publish(ctx, "nobody", 1, false, nil); err != nil || ack.Code != device.NoMatchingSubscribers {
		t.Errorf("publish to nobody: %v, %v", ack, err)
	}
	if _, err := b.WaitLog(ctx, 0, broker.Matches(`New client connected from \S+ as sensor_001-\S+ .*u'sensor_001'`)); err != nil {
		t.Error(err)
	}
	if _, err := d.Anonymous().ConnectV5(ctx); err == nil {
		t.Error("connected without a certificate")
	}
}

func TestRawConnections(t *testing.T) {
	ctx := limit(t)
	b := broker.Start(t, broker.Options{WithoutPlugin: true})
	d := identity(t, b, "sensor_001")
	watch, err := d.ConnectV5(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if err := watch.Subscribe(ctx, "#", 1); err != nil {
		t.Fatal(err)
	}

	raw, connack, err := d.ConnectRaw5(ctx, func(c *packets5.Connect) {
		c.WillFlag, c.WillTopic, c.WillMessage = true, "will", []byte("gone")
	})
	if err != nil || connack.ReasonCode != 0 {
		t.Fatal(connack, err)
	}
	alias := uint16(1)
	for packetID := uint16(1); packetID <= 2; packetID++ {
		p := &packets5.Publish{QoS: 1, PacketID: packetID, Payload: []byte("aliased"), Properties: &packets5.Properties{TopicAlias: &alias}}
		if packetID == 1 {
			p.Topic = "aliased"
		}
		if ack, err := raw.Publish(ctx, p); err != nil || ack.Code != device.Success {
			t.Fatalf("topic alias: %v, %v", ack, err)
		}
	}
	if ack, err := raw.Publish(ctx, &packets5.Publish{Topic: "twice", QoS: 2, PacketID: 3}); err != nil || ack.Code != device.Success {
		t.Fatalf("QoS 2: %v, %v", ack, err)
	}
	if ack, err := raw.Release(ctx, 3); err != nil || ack.Code != device.Success {
		t.Fatalf("PUBREL: %v, %v", ack, err)
	}
	if err := raw.Conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Inbox().WaitCount(ctx, "will", 1); err != nil {
		t.Error(err)
	}
	if n := len(watch.Inbox().On("aliased")); n != 2 {
		t.Errorf("%d publishes by topic alias arrived, want 2", n)
	}

	old, _, err := d.ConnectRaw3(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, dup := range []bool{false, true} {
		if err := old.Publish(ctx, "again", 1, 7, dup, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	if _, err := watch.Inbox().WaitCount(ctx, "again", 2); err != nil {
		t.Error(err)
	}
}

func TestLifeCycle(t *testing.T) {
	ctx := limit(t)
	b := broker.Start(t, broker.Options{WithoutPlugin: true})
	address, first := b.Address(0), b.Process().PID()
	if cpu, err := b.Process().CPUTime(); err != nil || cpu <= 0 {
		t.Errorf("processor time %v, %v", cpu, err)
	}
	if own, err := b.Process().ThreadTime(); err != nil || own <= 0 {
		t.Errorf("processor time of the broker's thread %v, %v", own, err)
	}
	if resident, peak, err := b.Process().Memory(); err != nil || resident <= 0 || peak < resident {
		t.Errorf("memory %d, peak %d, %v", resident, peak, err)
	}
	mark := b.Log().Mark()
	if err := b.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WaitLog(ctx, mark, broker.Contains("Reloading config.")); err != nil {
		t.Error(err)
	}
	if err := b.Restart(); err != nil {
		t.Fatal(err)
	}
	if b.Address(0) != address || b.Process().PID() == first {
		t.Errorf("restarted at %s as process %d; was at %s as %d", b.Address(0), b.Process().PID(), address, first)
	}
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *broker.ExitError
	if err := b.Process().Ended(); !errors.As(err, &exit) || exit.Code != -1 {
		t.Errorf("after SIGKILL: %v", err)
	}
	if err := b.Signal(syscall.SIGHUP); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	if err := b.Stop(); err == nil {
		t.Error("stopping a broker that was killed is no error")
	}
	if err := b.Restart(); err != nil {
		t.Fatal(err)
	}
}

func TestStartRefused(t *testing.T) {
	b, err := broker.New(broker.Options{WithoutPlugin: true, Conf: "no_such_setting true"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	err = b.Start()
	var exit *broker.ExitError
	if !errors.As(err, &exit) || exit.Code <= 0 || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("error %v (%T)", err, err)
	}
}

func TestCrashIsSeen(t *testing.T) {
	// A shell stands in for a broker whose exit status hides that something is wrong.
	b, err := broker.New(broker.Options{WithoutPlugin: true, Mosquitto: "/bin/sh"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	script := "trap 'echo \"panic: oh\"; exit 0' TERM\necho mosquitto version 0 running\nwhile :; do sleep 0.01; done\n"
	if err := b.WriteFile("script", []byte(script)); err != nil {
		t.Fatal(err)
	}
	p, err := broker.Command{Binary: "/bin/sh", Config: "exec /bin/sh " + b.Path("script"), Log: b.Log()}.Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(limit(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(limit(t)); err == nil || !strings.Contains(err.Error(), "panic: oh") {
		t.Errorf("error %v, want one that shows the panic", err)
	}
}

// orphan starts a broker, tells its process id, and waits to be killed.
func orphan() error {
	b, err := broker.New(broker.Options{WithoutPlugin: true})
	if err != nil {
		return err
	}
	if err := b.Start(); err != nil {
		return err
	}
	fmt.Println(b.Process().PID(), b.Dir)
	select {}
}

func TestBrokerDiesWithParent(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), helper+"=1")
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	var pid int
	if _, err := fmt.Fscan(bufio.NewReader(out), &pid, &dir); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed, as it should be
	ctx := limit(t)
	for alive(pid) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the broker, process %d, outlived its parent", pid)
		}
	}
}

// alive reports whether a process runs; a zombie, which waits for an init that does not reap, does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestLoad(t *testing.T) {
	b := broker.Start(t, broker.Options{WithoutPlugin: true, Quiet: true})
	load := device.Load{Window: 20, Payload: []byte(`{"temperature":22.5}`)}
	for _, id := range []string{"sensor_001", "sensor_002"} {
		load.Devices = append(load.Devices, identity(t, b, id))
	}
	load.Duration = 300 * time.Millisecond
	report, err := load.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Sent == 0 || report.Accepted != report.Sent || report.Refused != 0 || len(report.Latencies) != report.Sent {
		t.Errorf("sent %d accepted %d refused %d latencies %d", report.Sent, report.Accepted, report.Refused, len(report.Latencies))
	}
	t.Logf("%.0f a second, p50 %v, p99 %v", report.PerSecond(), report.Percentile(50), report.Percentile(99))

	load.Rate = 1 << 20 // limits nothing, but takes the other path
	load.Duration = 50 * time.Millisecond
	if report, err = load.Run(t.Context()); err != nil || report.Accepted != report.Sent {
		t.Errorf("with a rate: %+v, %v", report, err)
	}
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := load.Run(t.Context()); err == nil {
		t.Error("a load on a dead broker succeeded")
	}
}
