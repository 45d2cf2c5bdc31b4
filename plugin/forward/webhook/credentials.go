package webhook

import (
	"crypto/tls"
	"errors"

	"mosquitto-bouncer/plugin/ascii"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Credentials are what a request proves with who sends it, and with what the backend is recognised: bearer token, signing
// secret, client certificate, CAs. They do not change and are safe for concurrent use.
type Credentials struct {
	bearer string                    // "Bearer TOKEN", "": none
	signer *standardwebhooks.Webhook // nil: no signature
	tls    *tls.Config
}

// NewCredentials makes credentials. Each may be missing; without a TLS configuration the system's CAs are in force, and
// no client certificate. No secret is in the error.
func NewCredentials(bearerToken, signingSecret []byte, config *tls.Config) (*Credentials, error) {
	c := &Credentials{}
	if len(bearerToken) > 0 {
		if c.bearer = "Bearer " + string(bearerToken); !ascii.Visible(bearerToken) {
			return nil, errors.New("the bearer token holds a character that cannot be part of an HTTP header: " +
				"only printable ASCII without spaces or line ends is allowed")
		}
	}
	var err error
	if c.signer, err = newSigner(signingSecret); err != nil {
		return nil, err
	}
	if config == nil {
		config = &tls.Config{}
	}
	c.tls = config.Clone()
	c.tls.MinVersion = max(c.tls.MinVersion, tls.VersionTLS12)
	c.tls.NextProtos = []string{"http/1.1"}
	if c.tls.ClientSessionCache == nil {
		// A device that reports once a minute finds the connection closed each time; resuming saves the handshake's
		// public-key operations. With other credentials no session of these is resumed.
		c.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	return c, nil
}
