package plugin

import (
	"log/slog"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/httpd"
)

// auditRefusals records requests without the valid token. The listener limits how often it is called. Any goroutine.
func auditRefusals(log *audit.Log) func(httpd.Refusal) {
	return func(r httpd.Refusal) {
		log.Add(audit.Record{Event: audit.Unauthorized, Actor: r.Client, Count: r.Unreported})
	}
}

// warnOfToken logs that the listener's token is too short for a later version.
func warnOfToken(log *slog.Logger, c *config.Config) {
	if why := c.HTTP.TokenWarning(); why != "" {
		log.Warn(c.Where("http.token_file") + ": " + why)
	}
}
