package plugin

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"reflect"
	"slices"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/httpd"
)

// backendCredentials makes what requests to the backend prove themselves with.
func backendCredentials(c *config.Config) (*forward.Credentials, error) {
	credentials, err := forward.NewCredentials(c.Backend.BearerToken, c.Backend.SigningSecret, c.Backend.TLS)
	if err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	return credentials, nil
}

// renewal says what a reload renews, and does it.
type renewal struct {
	// backend and listener say whether secrets or certificates are to be exchanged there.
	backend, listener bool
	keys              []string // the settings whose files have changed, for the log
}

// newRenewal compares. Where the backend's URL has changed too, which needs a restart, its credentials stay: the new ones
// are not for the old URL. The same goes for TLS that is switched on or off.
func newRenewal(now, next *config.Config) (r renewal) {
	note := func(of *bool, changed bool, key string) {
		if changed {
			*of = true
			r.keys = append(r.keys, key)
		}
	}
	if a, b := &now.Backend, &next.Backend; a.URL == b.URL {
		note(&r.backend, !bytes.Equal(a.BearerToken, b.BearerToken), "backend.bearer_token_file")
		note(&r.backend, !bytes.Equal(a.SigningSecret, b.SigningSecret), "backend.signing_secret_file")
		note(&r.backend, !sameCertificates(a.TLS, b.TLS), "backend.cert_file")
		note(&r.backend, !sameCAs(a.TLS, b.TLS), "backend.ca_file")
	}
	if a, b := &now.HTTP, &next.HTTP; a.Listen != "" && len(b.Token) > 0 && (a.TLS == nil) == (b.TLS == nil) {
		note(&r.listener, !bytes.Equal(a.Token, b.Token), "http.token_file")
		note(&r.listener, !sameCertificates(a.TLS, b.TLS), "http.cert_file")
	}
	return r
}

// apply puts in force what is new in next, and notes it in now.
func (r renewal) apply(now, next *config.Config, credentials *forward.Credentials, forwarder *forward.Forwarder, server *httpd.Server) error {
	if r.listener && server != nil {
		if err := server.Renew(next.HTTP.Token, next.HTTP.TLS); err != nil {
			return err
		}
		now.HTTP.Token, now.HTTP.TLS = next.HTTP.Token, next.HTTP.TLS
	}
	if r.backend && forwarder != nil {
		forwarder.Renew(credentials)
		now.Backend.BearerToken, now.Backend.SigningSecret, now.Backend.TLS = next.Backend.BearerToken, next.Backend.SigningSecret, next.Backend.TLS
	}
	return nil
}

// renew puts in force what r renews of what was read.
func (g *Gateway) renew(r renewal, read *reloaded) error {
	now := *g.config
	err := r.apply(&now, read.config, read.backend, g.forwarder, g.server.Load())
	g.config = &now
	return err
}

// backendNeedsRestart reports whether more has changed in [backend] than what is renewed.
func backendNeedsRestart(now, next *config.Config) bool {
	return !sameBut(now.Backend, next.Backend, "BearerToken", "SigningSecret", "TLS")
}

// listenerNeedsRestart is the same for [http].
func listenerNeedsRestart(now, next *config.Config) bool {
	return !sameBut(now.HTTP, next.HTTP, "Token", "TLS") || (now.HTTP.TLS == nil) != (next.HTTP.TLS == nil)
}

// sameBut compares two structs in all fields but some.
func sameBut(a, b any, fields ...string) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !slices.Contains(fields, x.Type().Field(i).Name) && !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			return false
		}
	}
	return true
}

// sameCertificates compares the certificates with what is behind them. A private key belongs to its certificate.
func sameCertificates(a, b *tls.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.EqualFunc(a.Certificates, b.Certificates, func(x, y tls.Certificate) bool {
		return reflect.DeepEqual(x.Certificate, y.Certificate)
	})
}

// sameCAs compares the CAs that are trusted; nil stands for the system's.
func sameCAs(a, b *tls.Config) bool {
	if a == nil || b == nil || a.RootCAs == nil || b.RootCAs == nil {
		return a == b || a != nil && b != nil && a.RootCAs == b.RootCAs
	}
	return a.RootCAs.Equal(b.RootCAs)
}
