package config

import (
	"crypto/tls"
	"crypto/x509"
	"reflect"
	"testing"
)

// TestReloaded: what has changed takes effect or is named, and nothing of it takes effect where another setting needs a restart first.
func TestReloaded(t *testing.T) {
	load := func(text string) *Config {
		c, err := parse("b.toml", "/etc", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for text, want := range map[string]Changes{
		"":                                {},
		"state_dir = \"/x\"":              {Restart: []string{"state_dir"}},
		"database = \"/x\"":               {Restart: []string{"database"}},
		"[backend]\nconcurrency = 3":      {Restart: []string{"backend.concurrency"}},
		"[backend]\nurl = \"https://x/\"": {Restart: []string{"backend.url"}},
		"[response]\ntopic = \"\"":        {Restart: []string{"response.topic"}},
		"[audit]\nfile = \"/x\"":          {Restart: []string{"audit.file"}},
		"[publish]\nmax_bytes = 300\nrate = 1\nburst = 2\nmax_bad_signatures = 1\n[acl]\nothers = \"allow\"": {
			Live: []string{"publish.max_bytes", "publish.rate", "publish.burst", "publish.max_bad_signatures", "acl.others"}},
	} {
		before, after := load(""), load(text)
		inForce, got := before.Reloaded(after)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v", text, got)
		}
		if len(want.Restart) == 0 {
			before = after
		}
		for i, s := range inForce.table() {
			if !s.same(before.table()[i].value) {
				t.Errorf("%q: %s is in force", text, s.Key)
			}
		}
	}
	secure := "state_dir = \"/s\"\ndatabase = \"/d\"\n[backend]\nurl = \"https://x/\""
	if _, got := load(secure).Reloaded(load(secure)); !reflect.DeepEqual(got, Changes{}) {
		t.Errorf("%+v", got)
	}
}

// TestRenewal: what is renewed is named, and nothing is where another setting needs a restart first.
func TestRenewal(t *testing.T) {
	with := func(der string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{[]byte(der)}}}}
	}
	base := func() *Config {
		return &Config{
			Backend: Backend{URL: "https://a/", BearerToken: []byte("t"), SigningSecret: []byte("s"), TLS: with("x")},
			HTTP:    HTTP{Listen: "127.0.0.1:1", Token: []byte("t"), TLS: with("x")},
		}
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   Changes
	}{
		"nothing":     {func(*Config) {}, Changes{}},
		"token":       {func(c *Config) { c.Backend.BearerToken = []byte("u") }, Changes{Renewed: []string{"backend.bearer_token_file"}}},
		"no token":    {func(c *Config) { c.Backend.BearerToken = nil }, Changes{Renewed: []string{"backend.bearer_token_file"}}},
		"secret":      {func(c *Config) { c.Backend.SigningSecret = []byte("u") }, Changes{Renewed: []string{"backend.signing_secret_file"}}},
		"certificate": {func(c *Config) { c.Backend.TLS = with("y") }, Changes{Renewed: []string{"backend.cert_file"}}},
		"none":        {func(c *Config) { c.Backend.TLS = &tls.Config{} }, Changes{Renewed: []string{"backend.cert_file"}}},
		"CA and certificate": {func(c *Config) {
			c.Backend.TLS = with("y")
			c.Backend.TLS.RootCAs = x509.NewCertPool()
		}, Changes{Renewed: []string{"backend.ca_file", "backend.cert_file"}}},
		"listener": {func(c *Config) { c.HTTP.Token, c.HTTP.TLS = []byte("u"), with("y") },
			Changes{Renewed: []string{"http.token_file", "http.cert_file"}}},
		"another URL, and its token": {func(c *Config) { c.Backend.URL, c.Backend.BearerToken = "https://b/", []byte("u") },
			Changes{Restart: []string{"backend.url", "backend.bearer_token_file"}}},
		"token and concurrency": {func(c *Config) { c.Backend.Concurrency, c.Backend.BearerToken = 3, []byte("u") },
			Changes{Renewed: []string{"backend.bearer_token_file"}, Restart: []string{"backend.concurrency"}}},
		"TLS off": {func(c *Config) { c.HTTP.TLS, c.HTTP.Token = nil, []byte("u") },
			Changes{Restart: []string{"http.token_file", "http.cert_file"}}},
		"no http": {func(c *Config) { c.HTTP = HTTP{} },
			Changes{Restart: []string{"http.listen", "http.token_file", "http.cert_file"}}},
		"new port": {func(c *Config) { c.HTTP.Listen, c.HTTP.Token = "127.0.0.1:2", []byte("u") },
			Changes{Renewed: []string{"http.token_file"}, Restart: []string{"http.listen"}}},
		"key": {func(c *Config) { c.Registry.Key = []byte("k") }, Changes{Live: []string{"registry.key_file"}}},
	} {
		now, next := base(), base()
		test.change(next)
		inForce, got := now.Reloaded(next)
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
		for i, s := range inForce.table() {
			of := now
			for _, key := range append(got.Live, got.Renewed...) {
				if key == s.Key || key == "http.cert_file" && s.Key == "http.key_file" || key == "backend.cert_file" && s.Key == "backend.key_file" {
					of = next
				}
			}
			if !s.same(of.table()[i].value) {
				t.Errorf("%s: %s is not as it should be", name, s.Key)
			}
		}
		inForce.Keep(now, got.Renewed)
		if _, again := now.Reloaded(inForce); len(again.Renewed) > 0 {
			t.Errorf("%s: %q are not as before", name, again.Renewed)
		}
		next.Registry.Key, now.Registry.Key = nil, []byte("k")
		if _, got := now.Reloaded(next); got.Restart[len(got.Restart)-1] != "registry.key_file" {
			t.Errorf("%s: the key is taken away: %+v", name, got)
		}
	}
}
