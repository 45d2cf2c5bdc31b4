package plugin

import (
	"crypto/tls"
	"slices"
	"testing"

	"mosquitto-bouncer/plugin/config"
)

// TestRenewal: what is renewed is named, and nothing is where another setting needs a restart first.
func TestRenewal(t *testing.T) {
	with := func(der string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{[]byte(der)}}}}
	}
	base := func() *config.Config {
		return &config.Config{
			Backend: config.Backend{URL: "https://a/", BearerToken: []byte("t"), SigningSecret: []byte("s"), TLS: with("x")},
			HTTP:    config.HTTP{Listen: "127.0.0.1:1", Token: []byte("t"), TLS: with("x")},
		}
	}
	for name, test := range map[string]struct {
		change  func(*config.Config)
		renewed []string
		later   []string
	}{
		"nothing":     {func(*config.Config) {}, nil, nil},
		"token":       {func(c *config.Config) { c.Backend.BearerToken = []byte("u") }, []string{"backend.bearer_token_file"}, nil},
		"no token":    {func(c *config.Config) { c.Backend.BearerToken = nil }, []string{"backend.bearer_token_file"}, nil},
		"secret":      {func(c *config.Config) { c.Backend.SigningSecret = []byte("u") }, []string{"backend.signing_secret_file"}, nil},
		"certificate": {func(c *config.Config) { c.Backend.TLS = with("y") }, []string{"backend.cert_file"}, nil},
		"none":        {func(c *config.Config) { c.Backend.TLS = &tls.Config{} }, []string{"backend.cert_file"}, nil},
		"listener": {func(c *config.Config) { c.HTTP.Token, c.HTTP.TLS = []byte("u"), with("y") },
			[]string{"http.token_file", "http.cert_file"}, nil},
		"another URL, and its token": {func(c *config.Config) { c.Backend.URL, c.Backend.BearerToken = "https://b/", []byte("u") }, nil, []string{"backend"}},
		"token and concurrency": {func(c *config.Config) { c.Backend.Concurrency, c.Backend.BearerToken = 3, []byte("u") },
			[]string{"backend.bearer_token_file"}, []string{"backend"}},
		"TLS off":  {func(c *config.Config) { c.HTTP.TLS, c.HTTP.Token = nil, []byte("u") }, nil, []string{"http"}},
		"no http":  {func(c *config.Config) { c.HTTP = config.HTTP{} }, nil, []string{"http"}},
		"new port": {func(c *config.Config) { c.HTTP.Listen, c.HTTP.Token = "127.0.0.1:2", []byte("u") }, []string{"http.token_file"}, []string{"http"}},
	} {
		now, next := base(), base()
		test.change(next)
		if got := newRenewal(now, next).keys; !slices.Equal(got, test.renewed) {
			t.Errorf("%s: renewed %q, want %q", name, got, test.renewed)
		}
		if got := needRestart(now, next); !slices.Equal(got, test.later) {
			t.Errorf("%s: restart for %q, want %q", name, got, test.later)
		}
	}
}
