package fleet

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"mosquitto-bouncer/plugin/crash"
)

const (
	dialTimeout = 2 * time.Second
	// A server that hangs is left after pingEvery times two to three.
	pingEvery = 500 * time.Millisecond
	maxPings  = 2
	// writeTimeout bounds a write to a server that does not read.
	writeTimeout  = time.Second
	reconnectWait = 250 * time.Millisecond
	// maxSaid bounds what is kept of NATS's own words, in bytes.
	maxSaid = 300
)

// A session is one connection to one server, from its handshake to its end.
type session struct {
	nc         *nats.Conn
	js         jetstream.JetStream
	ctx        context.Context // done when the connection is lost
	cancel     context.CancelFunc
	maxPayload int64
	unfit      error // what is wrong with the server; nil: nothing
}

// during returns a context that ends with ctx, with the session, or after timeout.
func (s *session) during(ctx context.Context, timeout time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// connect begins to connect. nats.go continues by itself, for ever.
func (f *Fleet) connect() error {
	options := []nats.Option{
		nats.Name("mosquitto-bouncer " + f.o.Name),
		nats.Timeout(dialTimeout),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait, reconnectWait),
		nats.ReconnectBufSize(-1), // a message is in the journal, and nowhere else
		nats.PingInterval(pingEvery),
		nats.MaxPingsOutstanding(maxPings),
		nats.FlusherTimeout(writeTimeout),
		nats.IgnoreDiscoveredServers(), // only those of the settings
		nats.NoEcho(),
		nats.CustomInboxPrefix("_INBOX." + f.o.Name), // so that permissions can keep answers apart
		nats.ConnectHandler(f.connected),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			f.reconnects.Add(1)
			f.connected(nc)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			defer crash.Log(f.log, "connection to NATS")
			f.loseSession()
			f.said(err)
			f.loop.Wake()
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			defer crash.Log(f.log, "connection to NATS")
			f.said(err)
			f.known() // it is not there: Start need not wait
			f.loop.Wake()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			defer crash.Log(f.log, "connection to NATS")
			if err != nil {
				f.complaint.Store(&complaint{time.Now(), printable(err.Error())})
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) {
			defer crash.Log(f.log, "connection to NATS")
			f.loseSession()
			if !f.closing.Load() {
				f.log.Error("the connection to NATS has ended for good; restart the broker, and please report it")
			}
		}),
	}
	if f.o.TLS != nil {
		options = append(options, nats.Secure(f.o.TLS.Clone()))
	}
	if f.o.Credentials != nil {
		options = append(options, nats.UserCredentialBytes(f.o.Credentials))
	}
	o := nats.GetDefaultOptions()
	for _, set := range options {
		if err := set(&o); err != nil {
			return fmt.Errorf("fleet: %s", printable(err.Error()))
		}
	}
	o.Servers = f.o.Servers
	// The first attempt waits for each server, dialTimeout for one that hangs; those after it are in the background.
	go func() {
		defer close(f.dialled)
		defer crash.Log(f.log, "connecting to NATS")
		nc, err := o.Connect()
		if err != nil { // only of the settings, since it is tried for ever
			err = mismatch("NATS cannot be connected with these settings: %s; correct [fleet]", printable(err.Error()))
			f.fatal.Store(&trouble{time.Now(), err})
			f.loop.Wake()
			return
		}
		f.nc = nc
	}()
	return nil
}

// connected begins a session. It is a callback of nats.go, which calls one at a time.
func (f *Fleet) connected(nc *nats.Conn) {
	defer crash.Log(f.log, "connection to NATS")
	f.loseSession()
	js, err := jetstream.New(nc)
	if err != nil {
		f.log.Error("JetStream cannot be used", "error", err)
		return
	}
	s := &session{nc: nc, js: js, maxPayload: nc.MaxPayload()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.unfit = f.o.serverFits(nc.ConnectedServerVersion(), s.maxPayload)
	f.refused.Store(nil)
	f.complaint.Store(nil)
	f.session.Store(s)
	f.lines.Do(func() {
		f.log.Info("connected to NATS", "server", printable(nc.ConnectedServerName()), "version", printable(nc.ConnectedServerVersion()))
	})
	f.loop.Wake()
}

// loseSession ends what waits for an answer on a connection that is gone.
func (f *Fleet) loseSession() {
	if s := f.session.Swap(nil); s != nil {
		s.cancel()
	}
}

// said keeps why the connection is not there.
func (f *Fleet) said(err error) {
	if err != nil {
		text := printable(err.Error())
		// With TLS 1.3 a client learns of its certificate after the handshake: by an alert, or only by the end of the connection.
		if f.o.TLS != nil && (strings.Contains(text, "certificate required") || strings.Contains(text, "bad certificate") || strings.Contains(text, "after TLS handshake")) {
			text += "; check fleet.cert_file: NATS may want another client certificate"
		}
		f.refused.Store(&complaint{time.Now(), text})
	}
}

// printable is a piece of NATS's words as it may be logged.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), maxSaid)], "?"))
	return strings.TrimPrefix(s, "nats: ")
}
