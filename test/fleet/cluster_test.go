package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"mosquitto-bouncer/plugin/pki"
)

// nodeConfig is the variable that turns a run of the test binary into a NATS server.
const nodeConfig = "FLEET_NODE_CONFIG"

// patience bounds every single wait: the machine may be busy, and an election takes up to 9 s.
const patience = 40 * time.Second

func TestMain(m *testing.M) {
	if config := os.Getenv(nodeConfig); config != "" {
		os.Exit(runNode(config))
	}
	if os.Getenv("BOUNCER_SO") == "" {
		for _, name := range []string{"../../build/test/mosquitto_bouncer.so", "../../build/mosquitto_bouncer.so"} {
			if path, err := filepath.Abs(name); err == nil {
				if _, err := os.Stat(path); err == nil {
					os.Setenv("BOUNCER_SO", path)
					break
				}
			}
		}
	}
	os.Exit(m.Run())
}

// runNode is a NATS server until SIGTERM.
func runNode(config string) int {
	o, err := server.ProcessConfigFile(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o.NoSigs = true
	s, err := server.NewServer(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.ConfigureLogger()
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go s.Start()
	<-end
	s.Shutdown()
	s.WaitForShutdown()
	return 0
}

// A node is one server of a cluster.
type node struct {
	name, dir, url string
	cmd            *exec.Cmd
	done           chan struct{}
}

// A cluster is some servers on this machine.
type cluster struct {
	t     testing.TB
	nodes []*node
	ca    *pki.CA
	pool  *x509.CertPool // nil: without TLS
}

// clusterOptions say what cluster is wanted.
type clusterOptions struct {
	nodes int // 1: no cluster
	tls   bool
	extra string // of each nats-server.conf
}

// startCluster starts servers with sync_interval always, and waits until JetStream has a leader.
func startCluster(t testing.TB, o clusterOptions) *cluster {
	t.Helper()
	c := &cluster{t: t}
	scheme := "nats"
	var security string
	root := t.TempDir()
	if o.tls {
		scheme = "tls"
		var err error
		if c.ca, err = pki.NewCA("NATS test CA", time.Now(), time.Hour); err != nil {
			t.Fatal(err)
		}
		cert, key, err := c.ca.IssueServer([]string{"localhost", "127.0.0.1"}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{"ca.crt": c.ca.CertPEM(), "server.crt": cert, "server.key": key} {
			if err := os.WriteFile(filepath.Join(root, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.pool = x509.NewCertPool()
		c.pool.AppendCertsFromPEM(c.ca.CertPEM())
		security = fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }\n",
			filepath.Join(root, "server.crt"), filepath.Join(root, "server.key"), filepath.Join(root, "ca.crt"))
	}
	ports := freePorts(t, 2*o.nodes)
	var routes []string
	for i := range o.nodes {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[o.nodes+i]))
	}
	for i := range o.nodes {
		n := &node{name: fmt.Sprintf("n%d", i+1), url: fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[i])}
		n.dir = filepath.Join(root, n.name)
		text := fmt.Sprintf("server_name: %s\nlisten: 127.0.0.1:%d\nlog_file: %q\njetstream { store_dir: %q, sync_interval: always, max_file: 4GB }\n%s%s\n",
			n.name, ports[i], filepath.Join(n.dir, "log"), filepath.Join(n.dir, "js"), security, o.extra)
		if o.nodes > 1 {
			text += fmt.Sprintf("cluster { name: test, listen: 127.0.0.1:%d, routes: [%s] }\n", ports[o.nodes+i], strings.Join(routes, ", "))
		}
		if err := os.Mkdir(n.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.dir, "nats-server.conf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.signal(syscall.SIGKILL)
			n.wait()
			if t.Failed() {
				text, _ := os.ReadFile(filepath.Join(n.dir, "log"))
				t.Logf("the log of %s:\n%s", n.name, text[max(0, len(text)-4000):])
			}
		}
	})
	return c
}

func freePorts(t testing.TB, n int) (ports []int) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// up starts all nodes that do not run, and waits for a leader of JetStream.
func (c *cluster) up() *cluster {
	c.t.Helper()
	for _, n := range c.nodes {
		c.start(n)
	}
	c.ready()
	return c
}

func (c *cluster) start(n *node) {
	c.t.Helper()
	if n.cmd != nil {
		select {
		case <-n.done:
		default:
			return
		}
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	n.cmd = exec.Command(self)
	n.cmd.Env = append(os.Environ(), nodeConfig+"="+filepath.Join(n.dir, "nats-server.conf"), "GOMAXPROCS=2")
	n.cmd.Stderr = os.Stderr
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.done = make(chan struct{})
	started := make(chan error)
	go func() { // the death signal comes with the end of the thread that forked
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := n.cmd.Start()
		started <- err
		if err == nil {
			_ = n.cmd.Wait()
		}
		close(n.done)
	}()
	if err := <-started; err != nil {
		c.t.Fatal(err)
	}
}

func (n *node) signal(s syscall.Signal) {
	if n.cmd != nil && n.cmd.Process != nil {
		select {
		case <-n.done:
		default:
			_ = n.cmd.Process.Signal(s)
		}
	}
}

func (n *node) wait() {
	if n.done != nil {
		<-n.done
	}
}

func (n *node) kill() { n.signal(syscall.SIGKILL); n.wait() }

func (c *cluster) urls() (urls []string) {
	for _, n := range c.nodes {
		urls = append(urls, n.url)
	}
	return urls
}

// client connects a consumer, for the time of the test.
func (c *cluster) client() (*nats.Conn, jetstream.JetStream) {
	c.t.Helper()
	options := []nats.Option{nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond),
		nats.PingInterval(500 * time.Millisecond), nats.IgnoreDiscoveredServers(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	if c.pool != nil {
		cert, key, err := c.ca.IssueDevice("consumer", time.Now(), time.Hour)
		if err != nil {
			c.t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			c.t.Fatal(err)
		}
		options = append(options, nats.Secure(&tls.Config{RootCAs: c.pool, Certificates: []tls.Certificate{pair}}))
	}
	nc, err := nats.Connect(strings.Join(c.urls(), ","), options...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		c.t.Fatal(err)
	}
	return nc, js
}

// ready waits until JetStream answers.
func (c *cluster) ready() {
	c.t.Helper()
	_, js := c.client()
	eventually(c.t, "JetStream is ready", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := js.AccountInfo(ctx)
		if err != nil {
			return false
		}
		// A cluster makes a stream only when all nodes have met.
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "probe", Subjects: []string{"probe"}, Replicas: len(c.nodes)})
		if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return false
		}
		return js.DeleteStream(ctx, "probe") == nil
	})
}

// leader returns the node that leads the stream.
func (c *cluster) leader(js jetstream.JetStream) *node {
	c.t.Helper()
	var name string
	eventually(c.t, "the stream has a leader", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return false
		}
		if info := s.CachedInfo(); info.Cluster != nil {
			name = info.Cluster.Leader
		}
		return name != ""
	})
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	c.t.Fatalf("the leader is %q", name)
	return nil
}

func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !met(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
