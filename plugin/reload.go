package plugin

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/registry"
)

// A reloader reads bouncer.toml in a goroutine of its own, once for each request; requests that come while it reads are one.
// The goroutine ends with stop.
type reloader struct {
	requests chan struct{} // of capacity 1
	done     sync.WaitGroup
	once     sync.Once
	result   atomic.Pointer[reloaded] // not taken yet; nil: none
	failed   atomic.Pointer[string]   // why the last reload failed; nil: it did not
}

// reloaded is what came of reading the file.
type reloaded struct {
	config *config.Config
	key    *registry.Key // of config
	// backend are the credentials of config.
	backend *webhook.Credentials
	err     error
}

// newReloader starts a reloader. ready is called, from its goroutine, when there is a result.
func newReloader(file string, ready func(), log *slog.Logger) *reloader {
	r := &reloader{requests: make(chan struct{}, 1)}
	r.done.Go(func() {
		for range r.requests {
			r.read(file, log)
			ready()
		}
	})
	return r
}

func (r *reloader) read(file string, log *slog.Logger) {
	defer func() {
		if v := recover(); v != nil {
			log.Error("internal error in reload, caught; please report it", "panic", fmt.Sprint(v))
			r.result.Store(&reloaded{err: errors.New("internal error")})
		}
	}()
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

func (r *reloader) request() {
	select {
	case r.requests <- struct{}{}:
	default:
	}
}

// stop ends the goroutine. It waits for nothing but local files.
func (r *reloader) stop() {
	r.once.Do(func() { close(r.requests) })
	r.done.Wait()
}

// registryKey returns the key of the devices' secrets; nil for none.
func registryKey(c *config.Config) (*registry.Key, error) {
	if c.Registry.Key == nil {
		return nil, nil
	}
	return registry.NewKey(c.Registry.Key)
}

// Reload follows the broker's own configuration and bouncer.toml after SIGHUP, and has the whole registry read.
//
// An acl_file that was ever there counts as still there: the broker keeps it where anything in its new configuration is
// wrong, which only it can tell. A goroutine reads bouncer.toml, which takes effect as a whole at the next tick;
// where anything in it is wrong, all stays as it is.
func (g *Gateway) Reload() {
	defer func() {
		if v := recover(); v != nil {
			g.survived("reload", v)
		}
	}()
	conf, err := brokerconf.Running()
	switch {
	case g.brokerConf == nil:
		conf, err = nil, errors.New("the broker's configuration could not be read at the start")
	case err == nil:
		conf = g.brokerConf.Reloaded(conf)
		g.brokerConf = conf
		g.sessionQuestions.unasked = !g.asksSessions()
	}
	g.settleOthers(conf, err)
	g.registry.Reread()
	g.reloader.request()
	g.flushLog()
}

// ReloadError returns why bouncer.toml could not be read again at the last SIGHUP; "" where it could. Any goroutine.
func (g *Gateway) ReloadError() string {
	if why := g.reloader.failed.Load(); why != nil {
		return *why
	}
	return ""
}

// takeReload puts in force what the reloader has read, if anything. Broker's thread.
func (g *Gateway) takeReload() {
	if g.reloader == nil || g.reloader.result.Load() == nil {
		return
	}
	r := g.reloader.result.Swap(nil)
	if r.err != nil {
		why := r.err.Error()
		g.reloader.failed.Store(&why)
		for line := range strings.Lines(why) {
			g.host.Log(slog.LevelError, strings.TrimSpace(line))
		}
		g.log.Error("bouncer.toml was not reloaded; the settings that were in force stay so. Correct it and send SIGHUP again", "config", g.file)
		g.audit.Add(audit.Record{Event: audit.Reload, Result: "failed", Detail: why})
		g.audit.Reopen(auditOptions(g.config))
		return
	}
	g.reloader.failed.Store(nil)
	next, changes := g.config.Reloaded(r.config)
	g.adopt(next, changes, r.key)
	warnOfToken(g.log, r.config)
	if err := g.renew(next, changes, r.backend); err != nil {
		g.log.Error("secrets and certificates were not renewed", "error", err)
		next.Keep(g.config, changes.Renewed)
		changes.Renewed = nil
	} else if len(changes.Renewed) > 0 {
		g.log.Info("secrets and certificates were renewed", "settings", strings.Join(changes.Renewed, ","))
	}
	g.config = next
	g.warnOfIssuers()
	said := audit.Record{Event: audit.Reload, Result: "ok"}
	var details []string
	if len(changes.Renewed) > 0 {
		details = append(details, "renewed: "+strings.Join(changes.Renewed, ", "))
	}
	if len(changes.Restart) > 0 {
		details = append(details, "need a restart: "+strings.Join(changes.Restart, ", "))
		g.log.Warn("bouncer.toml was reloaded, but some changes need a restart of the broker", "settings", strings.Join(changes.Restart, ","))
	} else {
		g.log.Info("bouncer.toml was reloaded", "config", g.file)
	}
	said.Detail = strings.Join(details, "; ")
	g.audit.Add(said)
}

// adopt puts in force the Live settings of next. It sets back in next what cannot be put in force.
func (g *Gateway) adopt(next *config.Config, changes config.Changes, key *registry.Key) {
	if err := g.useIssuers(next.Publish.Issuers, next.Where("publish.issuers")); err != nil {
		g.log.Error("the issuers that were in force stay so", "error", err)
		next.Keep(g.config, []string{"publish.issuers"})
	}
	g.confinement.configure(next.ACL)
	g.settleStrangers(g.brokerConf)
	g.decision.maxBytes = next.Publish.MaxBytes
	g.devices.setLimit(deviceLimit(next))
	g.maxBad = next.Publish.MaxBadSignatures
	if g.others != next.ACL.Others {
		g.others = next.ACL.Others
		var err error
		if g.brokerConf == nil {
			err = errors.New("the broker's configuration could not be read at the start")
		}
		g.settleOthers(g.brokerConf, err)
	}
	if slices.Contains(changes.Live, "registry.key_file") {
		g.registry.SetKey(key)
	}
	g.audit.Reopen(auditOptions(next))
}

// deviceLimit is the rate limit of each device.
func deviceLimit(c *config.Config) (rate.Limit, int) {
	if c.Publish.Rate > 0 {
		return rate.Limit(c.Publish.Rate), c.Publish.Burst
	}
	return rate.Inf, 0
}

func auditOptions(c *config.Config) audit.Options {
	return audit.Options{File: c.Audit.File, MaxBytes: c.Audit.MaxBytes, Keep: c.Audit.Keep}
}
