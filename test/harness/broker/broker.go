// Package broker runs the real Mosquitto with the real plugin, for tests, benchmarks and the demo: a directory with
// certificates, registry and configuration of its own, free ports, the broker as a child process, its log captured
// line by line, and a stop that is checked.
package broker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "github.com/mattn/go-sqlite3" // the database of the Python gateway is made with plain SQL

	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/test/harness/device"
)

// Limits of one start and one stop. They are generous because the machine may be busy; nothing waits for them.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
	// portAttempts bounds the starts that fail because another program took a port between its choice and its use.
	portAttempts = 5
)

// Options say what broker is wanted. The zero value is a TLS listener on 127.0.0.1 that demands certificates, and the
// plugin with its defaults, no devices, and a backend that refuses connections.
type Options struct {
	// Devices are registered before the start, each with a random secret unless Secrets has one.
	Devices []string
	Secrets map[string]string
	// PythonDatabase makes the registry as the Python gateway does, and not through the registry's own code.
	PythonDatabase bool

	// BackendURL is the [backend] url.
	BackendURL string
	// Settings go into bouncer.toml, by dotted key: {"publish.tolerance": "1m"}. They override what is there.
	Settings map[string]any
	// BouncerTOML is the whole of bouncer.toml when not empty; {dir} stands for the broker's directory.
	BouncerTOML string

	// HTTP has the plugin listen for HTTP, at HTTPAddr, with the token HTTPToken.
	HTTP bool

	// Files are further files in the broker's directory, by name; {dir} in a text stands for that directory.
	Files map[string]string
	// Conf is added to mosquitto.conf before the listener: global settings, other plugins. {dir} and {plugin} stand
	// for the broker's directory and the plugin.
	Conf string
	// PerListenerSettings is per_listener_settings, which the broker wants before all it concerns.
	PerListenerSettings bool
	// ListenerConf is added to the TLS listener's settings; the same words are replaced.
	ListenerConf string
	// Listeners are further listeners, each the text of its settings without the line "listener". Address(i+1) tells
	// where it listens; the words {ca}, {cert} and {key} stand for the server's files, besides those of Conf.
	Listeners []string
	// Persistence has the broker save its state in the directory, for tests that restart it.
	Persistence bool
	// Quiet leaves out of the log what the broker says of each packet, for benchmarks.
	Quiet bool
	// WithoutPlugin leaves the plugin's lines out.
	WithoutPlugin bool

	// Plugin is the .so; empty: FindPlugin.
	Plugin string
	// Mosquitto is the broker's binary; empty: Find.
	Mosquitto string
	// Env is added to the broker's environment.
	Env []string
}

// Broker is a broker with all it needs. Its methods are safe for concurrent use, but for those that start and stop.
type Broker struct {
	// Dir holds everything. It belongs to the account that the broker runs as.
	Dir string

	options    Options
	credential *syscall.Credential
	binary     string
	ca         *pki.CA
	pool       *x509.CertPool
	log        *Log
	ports      []int

	mu      sync.Mutex
	devices map[string]*device.Device
	process *Process // the present run, or the last
}

// New makes the directory with its contents; nothing runs yet. Close removes it again.
func New(options Options) (*Broker, error) {
	b := &Broker{options: options, log: &Log{}, devices: map[string]*device.Device{}, pool: x509.NewCertPool()}
	var err error
	if b.binary = options.Mosquitto; b.binary == "" {
		if b.binary, err = Find(); err != nil {
			return nil, err
		}
	}
	plugin := options.Plugin
	if plugin == "" && !options.WithoutPlugin {
		if plugin, err = FindPlugin(); err != nil {
			return nil, err
		}
	}
	if b.credential, err = Account(); err != nil {
		return nil, err
	}
	if b.Dir, err = os.MkdirTemp("", "broker"); err != nil {
		return nil, fmt.Errorf("the broker's directory: %w", err)
	}
	if err := b.fill(plugin); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// fill makes the contents of the directory, the configuration files apart.
func (b *Broker) fill(plugin string) error {
	if err := b.own(b.Dir); err != nil {
		return err
	}
	for _, dir := range []string{"state", "persistence"} {
		if err := os.Mkdir(b.Path(dir), 0o750); err != nil {
			return err
		}
		if err := b.own(b.Path(dir)); err != nil {
			return err
		}
	}
	if plugin != "" {
		// A copy: the broker's account need not reach the source tree, and a rebuild does not pull a mapped file
		// from under a running broker.
		text, err := os.ReadFile(plugin)
		if err != nil {
			return fmt.Errorf("the plugin: %w", err)
		}
		if err := b.WriteFile("mosquitto_bouncer.so", text); err != nil {
			return err
		}
	}
	if err := b.makeCertificates(); err != nil {
		return err
	}
	for name, text := range b.options.Files {
		if err := b.WriteFile(name, []byte(strings.ReplaceAll(text, "{dir}", b.Dir))); err != nil {
			return err
		}
	}
	return b.makeRegistry()
}

// AddPlugin gives a broker that was made WithoutPlugin the plugin, from the next start on.
func (b *Broker) AddPlugin() error {
	plugin, err := FindPlugin()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(plugin)
	if err != nil {
		return fmt.Errorf("the plugin: %w", err)
	}
	b.options.WithoutPlugin = false
	return b.WriteFile("mosquitto_bouncer.so", text)
}

// FindPlugin returns the path of the plugin to test: $BOUNCER_SO, or the module's build/test/mosquitto_bouncer.so,
// which has the switches of the fault tests, or build/mosquitto_bouncer.so.
func FindPlugin() (string, error) {
	if path := os.Getenv("BOUNCER_SO"); path != "" {
		return path, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	for _, name := range []string{"build/test/mosquitto_bouncer.so", "build/mosquitto_bouncer.so"} {
		path := filepath.Join(root, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no mosquitto_bouncer.so in %s: run make build, or name one in $BOUNCER_SO", filepath.Join(root, "build"))
}

// moduleRoot is the nearest directory upwards, from the working directory, with a go.mod: a test runs in its package.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above %s: run this inside the source tree, or name the plugin in $BOUNCER_SO", start)
		}
	}
}

// Path is a file in the broker's directory.
func (b *Broker) Path(name string) string { return filepath.Join(b.Dir, name) }

// WriteFile makes or replaces a file in the broker's directory, readable by the broker alone.
func (b *Broker) WriteFile(name string, text []byte) error {
	path := b.Path(name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	return b.own(path)
}

// own gives a file to the account that the broker runs as.
func (b *Broker) own(path string) error {
	if b.credential == nil {
		return nil
	}
	return os.Chown(path, int(b.credential.Uid), int(b.credential.Gid))
}

// Log is the broker's output, over all its runs.
func (b *Broker) Log() *Log { return b.log }

// WaitLog waits for a line, from a mark of the log on, and gives up when the broker ends.
func (b *Broker) WaitLog(ctx context.Context, from int, m Match) (string, error) {
	return b.Process().WaitLog(ctx, from, m)
}

// Process is the present run of the broker, or the last; nil before the first.
func (b *Broker) Process() *Process {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.process
}

// Address is where listener i listens: 0 is the TLS listener, then Options.Listeners. It stays over restarts.
func (b *Broker) Address(i int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr(i)
}

// addr is Address with b.mu held.
func (b *Broker) addr(i int) string { return "127.0.0.1:" + strconv.Itoa(b.ports[i]) }

// Start runs the broker and waits until it serves. The first start chooses the ports, later ones keep them. The error
// of a broker that refused to start is an *ExitError and shows the log's end.
func (b *Broker) Start() error {
	if p := b.Process(); p != nil && p.Ended() == nil {
		return errors.New("the broker runs already")
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	first := b.ports == nil
	var err error
	for range portAttempts {
		if first {
			if err := b.choosePorts(); err != nil {
				return err
			}
		}
		if err := errors.Join(b.writeBouncerTOML(), b.writeMosquittoConf()); err != nil {
			return err
		}
		begin := b.log.Mark()
		if err = b.launch(ctx); err == nil {
			return nil
		}
		if b.log.Count(begin, Contains("ddress already in use")) == 0 {
			return err
		}
	}
	return err
}

func (b *Broker) launch(ctx context.Context) error {
	p, err := Command{
		Binary: b.binary, Config: b.Path("mosquitto.conf"), Credential: b.credential, Log: b.log, Env: b.options.Env,
	}.Start()
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.process = p
	b.mu.Unlock()
	if err := p.Ready(ctx); err != nil {
		return errors.Join(fmt.Errorf("starting the broker: %w", err), p.Kill())
	}
	return nil
}

// choosePorts takes free ports by listening on them for a moment, all at once so that they differ.
func (b *Broker) choosePorts() error {
	ports := make([]int, 2+len(b.options.Listeners)) // the last is the HTTP listener's
	for i := range ports {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("choosing a port: %w", err)
		}
		defer listener.Close()
		ports[i] = listener.Addr().(*net.TCPAddr).Port
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ports = ports
	for _, d := range b.devices {
		d.Addr = b.addr(0)
	}
	return nil
}

// Stop is Process.Stop with a limit of its own.
func (b *Broker) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	p := b.Process()
	if p.Ended() == nil {
		if err := b.inLoop(ctx, p); err != nil {
			return errors.Join(fmt.Errorf("stopping the broker: %w", err), p.Kill())
		}
	}
	return p.Stop(ctx)
}

// inLoop waits until the broker is in its main loop, which is so once it has taken a connection. Before, right after it
// says that it runs, there is a moment in which it forgets a SIGTERM (2.0: main sets run to 1 after signal__setup).
func (b *Broker) inLoop(ctx context.Context, p *Process) error {
	const taken = "New connection from "
	if b.log.Count(p.begin, Contains(taken)) > 0 {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.Address(0))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = p.WaitLog(ctx, p.begin, Contains(taken))
	return err
}

// Kill is Process.Kill.
func (b *Broker) Kill() error { return b.Process().Kill() }

// Signal is Process.Signal.
func (b *Broker) Signal(sig syscall.Signal) error { return b.Process().Signal(sig) }

// Restart stops the broker, if it still runs, and starts it again with its ports, certificates, registry and state.
func (b *Broker) Restart() error {
	if b.Process().Ended() == nil {
		if err := b.Stop(); err != nil {
			return err
		}
	}
	return b.Start()
}

// Close kills the broker, should it still run, and removes the directory.
func (b *Broker) Close() error {
	var err error
	if p := b.Process(); p != nil {
		err = p.Kill()
	}
	return errors.Join(err, os.RemoveAll(b.Dir))
}

// AddDevice registers a device, at any time: with the secret of Options.Secrets or a random one.
func (b *Broker) AddDevice(id string) (*device.Device, error) {
	d, err := b.Device(id)
	if err != nil {
		return nil, err
	}
	if b.options.PythonDatabase {
		err = b.SQL(`INSERT INTO devices(device_id, shared_secret, created_at) VALUES(?, ?, ?)`, id, string(d.Secret), time.Now().Unix())
		return d, err
	}
	store, err := registry.OpenStore(b.Path("devices.db"))
	if err != nil {
		return nil, err
	}
	err = store.Add(context.Background(), id, registry.Secret(d.Secret))
	return d, errors.Join(err, store.Close())
}

// Device returns the identity with this common name, registered or not, the same at every call. Start the broker
// before connecting: the address is known from then on.
func (b *Broker) Device(id string) (*device.Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.devices[id]; d != nil {
		return d, nil
	}
	certPEM, keyPEM, err := b.ca.IssueDevice(id, time.Now(), 24*time.Hour)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the certificate of %q: %w", id, err)
	}
	secret := b.options.Secrets[id]
	if secret == "" {
		random := make([]byte, 32)
		rand.Read(random)
		secret = hex.EncodeToString(random)
	}
	d := &device.Device{ID: id, Secret: []byte(secret), Certificate: pair, CA: b.pool}
	if b.ports != nil {
		d.Addr = b.addr(0)
	}
	b.devices[id] = d
	return d, nil
}

// CA issues certificates that the broker trusts.
func (b *Broker) CA() *pki.CA { return b.ca }

// SQL runs one statement on the registry's database, whether the broker runs or not.
func (b *Broker) SQL(statement string, args ...any) error {
	db, err := sql.Open("sqlite3", "file:"+b.Path("devices.db")+"?_busy_timeout=5000")
	if err != nil {
		return fmt.Errorf("devices.db: %w", err)
	}
	if _, err = db.Exec(statement, args...); err != nil {
		err = fmt.Errorf("devices.db: %w", err)
	}
	return errors.Join(err, db.Close())
}
