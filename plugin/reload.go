package plugin

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/registry"
)

// A configReader reads bouncer.toml in a goroutine of its own, once for each request; requests that come while it reads are
// one. The goroutine ends with stop.
type configReader struct {
	requests chan struct{} // of capacity 1
	done     sync.WaitGroup
	once     sync.Once
	result   atomic.Pointer[reloaded] // not taken yet; nil: none
}

// reloaded is the result of reading the file.
type reloaded struct {
	config *config.Config
	key    *registry.Key // of config
	// backend are the credentials of config.
	backend *webhook.Credentials
	err     error
}

// newConfigReader starts a configReader. ready is called, from its goroutine, when there is a result.
func newConfigReader(file string, ready func(), log *slog.Logger) *configReader {
	r := &configReader{requests: make(chan struct{}, 1)}
	r.done.Go(func() {
		for range r.requests {
			r.read(file, log)
			ready()
		}
	})
	return r
}

func (r *configReader) read(file string, log *slog.Logger) {
	defer crash.Then(log, "reload", func() { r.result.Store(&reloaded{err: errors.New("internal error")}) })
	c, err := config.Load(file)
	var key *registry.Key
	if err == nil {
		key, err = registryKey(c)
	}
	var backend *webhook.Credentials
	if err == nil {
		backend, err = backendCredentials(c)
	}
	r.result.Store(&reloaded{config: c, key: key, backend: backend, err: err})
}

func (r *configReader) request() {
	select {
	case r.requests <- struct{}{}:
	default:
	}
}

// stop ends the goroutine. It waits for nothing but local files.
func (r *configReader) stop() {
	r.once.Do(func() { close(r.requests) })
	r.done.Wait()
}

// A reloading puts changes of bouncer.toml and of the broker's configuration in force. Broker's thread only, except why.
type reloading struct {
	host     Host
	reader   *configReader
	broker   *brokerSettings
	config   *config.Config // in force now
	gate     *gate.Gate
	registry *registry.Registry
	commands *downlink.Commands // nil: without an HTTP listener there are none
	sink     *webhook.Sink      // nil: messages go to NATS
	server   *httpd.Server      // nil: none
	audit    *audit.Log         // nil: none
	log      *slog.Logger

	failed atomic.Pointer[string] // why the last reload failed; nil: it did not
}

// request has everything read again after SIGHUP: the broker's own configuration, bouncer.toml and the registry. A goroutine
// reads bouncer.toml, which takes effect as a whole in a later round; if anything in it is wrong, nothing changes.
func (r *reloading) request() {
	r.broker.reread()
	r.broker.settleOthers()
	r.gate.Configure(gateSettings(r.config, r.broker))
	r.registry.Reread()
	r.reader.request()
}

// why returns why bouncer.toml could not be reloaded at the last SIGHUP; "" if it was. Any goroutine.
func (r *reloading) why() string {
	if why := r.failed.Load(); why != nil {
		return *why
	}
	return ""
}

// take puts in force what the reader has read since the last call.
func (r *reloading) take() {
	if r.reader.result.Load() == nil {
		return
	}
	read := r.reader.result.Swap(nil)
	if read.err != nil {
		r.fail(read.err)
		return
	}
	r.failed.Store(nil)
	next, changes := r.config.Reloaded(read.config)
	r.adopt(next, changes, read.key)
	warnOfToken(r.log, read.config)
	if err := r.renew(next, changes, read.backend); err != nil {
		r.log.Error("secrets and certificates were not renewed", "error", err)
		next.Keep(r.config, changes.Renewed)
		changes.Renewed = nil
	} else if len(changes.Renewed) > 0 {
		r.log.Info("secrets and certificates were renewed", "settings", strings.Join(changes.Renewed, ","))
	}
	r.config = next
	r.broker.warnOfIssuers(len(next.Publish.Issuers) > 0)
	r.report(changes)
}

// fail reports why nothing changes.
func (r *reloading) fail(err error) {
	why := err.Error()
	r.failed.Store(&why)
	for line := range strings.Lines(why) {
		r.host.Log(slog.LevelError, strings.TrimSpace(line))
	}
	r.log.Error("bouncer.toml was not reloaded; the previous settings stay in force. Correct it and send SIGHUP again", "config", r.broker.file)
	r.audit.Add(audit.Record{Event: audit.Reload, Result: "failed", Detail: why})
	r.audit.Reopen(auditOptions(r.config))
}

// adopt puts the Live settings of next in force. Where one cannot be, it gives next the previous value.
func (r *reloading) adopt(next *config.Config, changes config.Changes, key *registry.Key) {
	if err := useIssuers(r.host, next); err != nil {
		r.log.Error("publish.issuers was not changed; the previous certificates stay in force", "error", err)
		next.Keep(r.config, []string{"publish.issuers"})
	}
	r.gate.Configure(gateSettings(next, r.broker))
	if r.broker.others != next.ACL.Others {
		r.broker.others = next.ACL.Others
		r.broker.settleOthers()
	}
	if slices.Contains(changes.Live, "registry.key_file") {
		r.registry.SetKey(key)
	}
	r.commands.SetKeys(next.Command.Keys)
	r.audit.Reopen(auditOptions(next))
}

// renew replaces the secrets and certificates of connections that have changed in next: all of them, or with an error none.
func (r *reloading) renew(next *config.Config, changes config.Changes, backend *webhook.Credentials) error {
	if r.server != nil && changes.RenewsListener() {
		if err := r.server.Renew(next.HTTP.Token, next.HTTP.TLS); err != nil {
			return err
		}
	}
	if changes.RenewsBackend() && r.sink != nil {
		r.sink.Renew(backend)
	}
	return nil
}

// report logs and records the result of a reload.
func (r *reloading) report(changes config.Changes) {
	var details []string
	if len(changes.Renewed) > 0 {
		details = append(details, "renewed: "+strings.Join(changes.Renewed, ", "))
	}
	if len(changes.Restart) > 0 {
		details = append(details, "need a restart: "+strings.Join(changes.Restart, ", "))
		r.log.Warn("bouncer.toml was reloaded, but some changes need a restart of the broker", "settings", strings.Join(changes.Restart, ","))
	} else {
		r.log.Info("bouncer.toml was reloaded", "config", r.broker.file)
	}
	r.audit.Add(audit.Record{Event: audit.Reload, Result: "ok", Detail: strings.Join(details, "; ")})
}
