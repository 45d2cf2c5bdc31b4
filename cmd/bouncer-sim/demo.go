package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/test/harness/backend"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

const (
	// stopTimeout bounds the broker's stop: the plugin delivers what is queued first.
	stopTimeout = 15 * time.Second
	// liveInterval is the time between a sensor's messages after the tour.
	liveInterval = 2 * time.Second
)

// demo is the tour of `make run`, on a directory that bouncerctl has prepared.
type demo struct {
	dir               string
	port, backendPort int
	httpPort          int
	once, check       bool
	screen            *screen
}

func newDemo() *cobra.Command {
	d := &demo{}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run broker, backend, a sensor and an attacker, and show what happens to each message",
		Long: `Run Mosquitto with the plugin, a stand-in backend, a sensor and an attacker, and show what happens to each message.

The directory must hold what bouncerctl init and bouncerctl device add make, for sensor_001 and sensor_002;
scripts/run, and so make run, sees to that.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := d.preflight(); err != nil || d.check {
				return err
			}
			d.screen = newScreen(os.Stdout)
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&d.dir, "dir", "build/run", "the prepared directory")
	c.Flags().IntVar(&d.port, "port", 8883, "the port that mosquitto.conf names")
	c.Flags().IntVar(&d.backendPort, "backend-port", 5000, "the port that bouncer.toml expects the backend on")
	c.Flags().IntVar(&d.httpPort, "http-port", 8080, "the port that bouncer.toml has the plugin listen on for HTTP")
	c.Flags().BoolVar(&d.once, "once", false, "end after the tour")
	c.Flags().BoolVar(&d.check, "check", false, "only check that the tools are there and the ports are free")
	return c
}

// preflight finds what would make the demo fail half-way, before anything is started.
func (d *demo) preflight() error {
	_, missing := broker.Find()
	return errors.Join(missing,
		checkPort("", d.port, "broker", "make run PORT="),
		checkPort("127.0.0.1", d.backendPort, "backend", "make run BACKEND_PORT="),
		checkPort("127.0.0.1", d.httpPort, "plugin's HTTP listener", "make run HTTP_PORT="))
}

func (d *demo) run(ctx context.Context) (err error) {
	b, err := backend.New(net.JoinHostPort("127.0.0.1", strconv.Itoa(d.backendPort)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	b.Script(func(r *backend.Request) backend.Answer {
		return backend.Answer{
			Header: map[string][]string{"Content-Type": {"application/json"}},
			Body:   fmt.Appendf(nil, `{"status":"ok","received":%d}`, r.Seq),
		}
	})

	logPath := filepath.Join(d.dir, "mosquitto.log")
	logFile, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	process, err := d.startBroker(ctx, logFile)
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err = errors.Join(err, process.Stop(stopping))
	}()

	t, err := d.newTour(ctx, process, b)
	if err != nil {
		return err
	}
	defer t.close()
	d.introduce(process, b, logPath)
	if err := t.run(ctx); err != nil {
		return interrupted(ctx, err)
	}
	if !d.once {
		d.screen.heading("Your turn")
		d.explain()
		err = t.live(ctx)
	}
	return errors.Join(t.failure(), err)
}

// interrupted hides an error that is but the consequence of Ctrl-C.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted before the tour was over")
	}
	return err
}

func (d *demo) startBroker(ctx context.Context, log io.Writer) (*broker.Process, error) {
	binary, err := broker.Find()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(d.dir, "mosquitto.conf")
	credential, err := account(conf)
	if err != nil {
		return nil, err
	}
	process, err := broker.Command{Binary: binary, Config: conf, Credential: credential, Log: &broker.Log{}, Tee: log}.Start()
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := process.Ready(ready); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the broker: %w", err), process.Kill())
	}
	return process, nil
}

// account is who runs the broker: as broker.Account says, unless the configuration wants it to stay who we are.
func account(conf string) (*syscall.Credential, error) {
	text, err := os.ReadFile(conf)
	if err != nil {
		return nil, fmt.Errorf("%w; bouncerctl init makes it", err)
	}
	if regexp.MustCompile(`(?m)^user[ \t]`).Match(text) {
		return nil, nil
	}
	return broker.Account()
}

var version = regexp.MustCompile(`(?:mosquitto version |bouncer: ready version=)(\S+)`)

func (d *demo) introduce(process *broker.Process, b *backend.Backend, logPath string) {
	s := d.screen
	versionIn := func(m broker.Match) string {
		for _, line := range process.Log().Find(0, m) {
			if found := version.FindStringSubmatch(line); found != nil {
				return found[1]
			}
		}
		return "(unknown)"
	}
	s.line("%s", s.in(bold, fmt.Sprintf("mosquitto-bouncer %s on Mosquitto %s",
		versionIn(broker.Contains("bouncer: ready")), versionIn(broker.Contains("mosquitto version")))))
	s.field("broker", "", fmt.Sprintf("localhost:%d, TLS with client certificates", d.port))
	s.field("its log", "", logPath)
	s.field("backend", "", "http://"+b.Addr()+", a stand-in that counts what it receives")
	s.field("commands", "", fmt.Sprintf("http://127.0.0.1:%d, /metrics and /healthz too", d.httpPort))
}

// explain shows how to publish by hand: as sensor_002, whose connection live has closed. A publish as sensor_001 would end
// the connection of the tour itself, since a device has one.
func (d *demo) explain() {
	d.screen.line("A signed message from another shell; paste all lines at once:\n")
	d.screen.line(`  cd %s
  id=sensor_002 payload='{"temperature":21.5}'
  timestamp=$(date +%%s) message_id=$(cat /proc/sys/kernel/random/uuid)
  signature=$(printf %%s "$id$timestamp$message_id$payload" | python3 -c \
    'import hashlib, hmac, sys; print(hmac.new(open("secret", "rb").read(),
    sys.stdin.buffer.read(), hashlib.sha256).hexdigest())')
  printf '{"device_id":"%%s","timestamp":%%s,"message_id":"%%s",
    "payload":%%s,"signature":"%%s"}' \
    "$id" "$timestamp" "$message_id" "$payload" "$signature" |
  mosquitto_pub -h localhost -p %d -V 5 -q 1 -t "device/$id/data" -s \
    --cafile ca.crt --cert device.crt --key device.key
`, shellQuote(absolute(d.bundle("sensor_002"))), d.port)
	d.screen.line("Repeat only the last command: it is a replay. Change $payload before it, and\nit is still a replay. With a new $message_id too, the signature is wrong.\nThe result is shown here.")
	d.screen.line("\nA command, from that shell:\n")
	d.screen.line(`  printf 'header = "Authorization: Bearer %%s"\n' "$(cat ../../http-token)" |
    curl -K - -H 'Content-Type: application/json' \
    -d '{"blink":3}' 'http://127.0.0.1:%d/v1/devices/sensor_001/commands?wait=5s'
`, d.httpPort)
	for _, tool := range []string{"mosquitto_pub", "python3"} {
		if _, err := exec.LookPath(tool); err != nil {
			d.screen.line("(%s is not installed here.)", tool)
		}
	}
}

// shellQuote writes text so that a POSIX shell takes it for one word.
func shellQuote(text string) string {
	if regexp.MustCompile(`\A[A-Za-z0-9/._-]+\z`).MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

func absolute(path string) string {
	if whole, err := filepath.Abs(path); err == nil {
		return whole
	}
	return path
}

func (d *demo) bundle(id string) string { return filepath.Join(d.dir, "devices", id) }

func (d *demo) device(id string) (*device.Device, error) {
	return device.ReadBundle(d.bundle(id), net.JoinHostPort("localhost", strconv.Itoa(d.port)))
}

// observer is an identity that is no device: a subscriber such as a dashboard would be.
func (d *demo) observer(like *device.Device) (*device.Device, error) {
	certPEM, err := os.ReadFile(filepath.Join(d.dir, "pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(d.dir, "pki", "ca.key"))
	if err != nil {
		return nil, err
	}
	ca, err := pki.LoadCA(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	cert, key, err := ca.IssueDevice("dashboard", time.Now(), 24*time.Hour)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the dashboard's certificate: %w", err)
	}
	return &device.Device{ID: "dashboard", Addr: like.Addr, Certificate: pair, CA: like.CA}, nil
}
