// Package plugin is the gateway: the root, which starts the rooms and connects them. It knows neither C nor the broker's
// structures; package cgo translates between the two.
//
//	gateway   Start, Stop, Tick, Reload
//	start     what is opened, in which order, and what each room is given of the others
//	tasks     what is done on the broker's thread besides deciding, in one list
//	closers   what is closed at the stop, in which order
//	reload    what follows from a change of bouncer.toml and of the broker's configuration
//	broker    what follows from the broker's own configuration
//	service   the answers to HTTP requests
//	orders    what bouncerctl orders the running gateway to do
package plugin

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/brokerlog"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/outbox"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/version"
)

// Version is the version of this software.
const Version = version.Number

// A Host is the broker as the gateway needs it.
type Host interface {
	gate.Broker
	// Wake ends the present sleep of the broker's thread. Any thread; returns at once.
	Wake()
	// SetIssuers sets the certificates of CAs, DER, of which one must have signed the certificate of a client that is a device;
	// none: any CA. False: one of them cannot be used, and the previous ones stay in force. Broker's thread only.
	SetIssuers([][]byte) bool
	// SetOthers sets the answer where the gateway does not decide on access. Broker's thread only.
	SetOthers(Others)
	// Is2_1 reports whether the broker is Mosquitto 2.1 or later.
	Is2_1() bool
}

// A Gateway is one running instance: a gate, with everything behind it. Its methods are called only on the broker's thread.
// None waits for anything, except Start, which reads files, and Stop, which waits for a bounded time.
type Gateway struct {
	*gate.Gate
	host      Host
	registry  *registry.Registry
	outbox    *outbox.Outbox
	service   *service
	audit     *audit.Log // nil: none
	broker    *brokerSettings
	reloading *reloading
	tasks     tasks
	closers   closers
	logs      *brokerlog.Queue
	log       *slog.Logger
	panics    *crash.Reporter
}

// Start reads the configuration and the registry and starts the gateway's own goroutines. The error says what is wrong in
// which file, and what to do.
func Start(configFile string, host Host) (_ *Gateway, err error) {
	if strings.Trim(configFile, " \t\"'") != configFile || strings.Contains(configFile, " #") {
		return nil, fmt.Errorf("plugin_opt_config_file is %q: the broker uses the rest of the line unchanged; remove blanks, quotes and comments from it", configFile)
	}
	c, err := config.Load(configFile)
	if err != nil {
		return nil, err
	}
	s := newStarter(configFile, c, host)
	defer func() {
		if err != nil {
			s.closers.close()
			s.flushLog()
		}
	}()
	if err = s.start(); err != nil {
		return nil, err
	}
	s.flushLog()
	return s.Gateway, nil
}

// Tick does what is due in a round of the broker's event loop: ten times a second on an idle broker.
func (g *Gateway) Tick() {
	defer g.panics.Recover("tick")
	g.tasks.tick(time.Now())
}

// Reload reads the broker's own configuration, bouncer.toml and the whole registry again after SIGHUP.
func (g *Gateway) Reload() {
	defer g.panics.Recover("reload")
	g.reloading.request()
	g.flushLog()
}

// Share lets one more plugin line use this gateway: with per_listener_settings each listener has its own. The error says
// why the line is not allowed.
func (g *Gateway) Share(configFile string) error {
	if err := g.broker.share(configFile); err != nil {
		return err
	}
	g.Gate.Share()
	return nil
}

// ListenerSettings reports whether the broker has per_listener_settings true, or may have.
func (g *Gateway) ListenerSettings() bool { return g.broker.listenerSettings() }

// Stats returns the state of delivery. Safe for concurrent use.
func (g *Gateway) Stats() outbox.Stats { return g.outbox.Stats() }

// Stop ends everything that Start began. It waits up to stopWithin for the backend to take what is still queued.
func (g *Gateway) Stop() {
	g.audit.Add(audit.Record{Event: audit.Stop, Version: Version})
	g.closers.close()
	g.log.Info("stopped", g.Stats().Accounts.Attrs()...)
	g.flushLog()
}

func (g *Gateway) flushLog() { g.logs.Drain(g.host.Log) }
