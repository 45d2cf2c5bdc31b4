package plugin

import (
	"fmt"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/forward/webhook"
)

// backendCredentials makes what requests to the backend prove themselves with.
func backendCredentials(c *config.Config) (*webhook.Credentials, error) {
	credentials, err := webhook.NewCredentials(c.Backend.BearerToken, c.Backend.SigningSecret, c.Backend.TLS)
	if err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	return credentials, nil
}

// renew exchanges the secrets and certificates of connections that have changed in next: all of them, or with an error none.
func (g *Gateway) renew(next *config.Config, changes config.Changes, backend *webhook.Credentials) error {
	if server := g.server.Load(); server != nil && changes.RenewsListener() {
		if err := server.Renew(next.HTTP.Token, next.HTTP.TLS); err != nil {
			return err
		}
	}
	if g.sink != nil && changes.RenewsBackend() {
		g.sink.Renew(backend)
	}
	return nil
}
