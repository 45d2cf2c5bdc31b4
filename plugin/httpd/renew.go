package httpd

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
)

// identity is what clients prove themselves with to the server, and the server to them. It does not change.
type identity struct {
	token [sha256.Size]byte
	tls   *tls.Config // nil: plain HTTP
}

// newIdentity makes an identity. No session is resumed: each connection proves the certificate that is in force.
func newIdentity(token []byte, config *tls.Config) (*identity, error) {
	if len(token) == 0 {
		return nil, errors.New("http: there is no token, and without one anyone could send commands to devices")
	}
	i := &identity{token: sha256.Sum256(token)}
	if config != nil {
		i.tls = config.Clone()
		i.tls.MinVersion = max(i.tls.MinVersion, tls.VersionTLS12)
		i.tls.NextProtos = []string{"http/1.1"}
		i.tls.SessionTicketsDisabled = true
	}
	return i, nil
}

// Renew puts another token and certificate in force, both at once: the token for every request from now on, also on
// connections that are open, the certificate for new connections. Whether there is TLS at all does not change, so
// config must be nil where it was at the start, and only there. Any goroutine may call it; it does not wait.
func (s *Server) Renew(token []byte, config *tls.Config) error {
	next, err := newIdentity(token, config)
	if err != nil {
		return err
	}
	if now := s.identity.Load(); (now.tls == nil) != (next.tls == nil) {
		return errors.New("http: TLS cannot be switched on or off while the listener is open; restart the broker")
	}
	s.identity.Store(next)
	return nil
}

// choose returns the configuration of a new connection.
func (s *Server) choose(*tls.ClientHelloInfo) (*tls.Config, error) { return s.identity.Load().tls, nil }
