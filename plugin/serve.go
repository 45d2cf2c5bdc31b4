package plugin

import (
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/httpd"
	"mosquitto-bouncer/plugin/metrics"
)

// serve starts the HTTP listener, if there is to be one.
func (s *starter) serve() error {
	c := s.config
	s.service = &service{
		gate: s.Gate, registry: s.registry, outbox: s.outbox, commands: s.commands, audit: s.audit, metrics: s.collectors(),
		health: &health{
			started: time.Now(), gate: s.Gate, registry: s.registry, writable: s.writable, reload: s.reloading.why, checks: s.checks,
		},
	}
	if c.HTTP.Listen == "" {
		return nil
	}
	server, err := httpd.Start(httpd.Options{
		Listen:  c.HTTP.Listen,
		Token:   c.HTTP.Token,
		TLS:     c.HTTP.TLS,
		MinTTL:  command.MinTTL,
		MaxTTL:  command.MaxTTL,
		Version: Version,
		Log:     s.log,
		Refused: auditRefusals(s.audit),
	}, s.service)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("http.listen"), err)
	}
	s.closers.add("the HTTP listener", server.Stop)
	s.server.Store(server)
	s.reloading.server = server
	warnOfToken(s.log, c)
	s.log.Info("serving HTTP", "listen", server.Addr().String(), "tls", c.HTTP.TLS != nil)
	return nil
}

// collectors returns everything that /metrics shows.
func (s *starter) collectors() *metrics.Set {
	set := metrics.NewSet(s.log)
	set.Add(
		metrics.Collector(func(to metrics.Sender) {
			to.Gauge("build_info", "The version of the plugin.", 1, "version", Version)
			to.Flag("config_reload_failed", "Whether bouncer.toml could not be reloaded at the last SIGHUP.", s.reloading.why() != "")
			if server := s.server.Load(); server != nil { // it answers requests before it is set
				to.Collect(server.Collector())
			}
		}),
		s.Gate.Collector(), s.registry.Collector(), s.seen.Collector(), s.down.Collector(), s.responses.Collector())
	if s.commands != nil {
		set.Add(s.commands.Collector())
	}
	if s.fleet != nil {
		set.Add(s.fleet.Collector())
	}
	set.Add(s.outbox.Collectors()...)
	return set
}
