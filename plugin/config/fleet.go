package config

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/secret"
)

const (
	maxNATSServers = 16
	maxNATSName    = 32
	maxNATSServer  = 256 // bytes
	// natsTLS and natsPlain are the schemes of URLs of NATS.
	natsTLS   = "tls"
	natsPlain = "nats"
)

func natsServers(at *[]string) value {
	return value{
		field: at, kind: "list of URLs", byDefault: "[]", limits: fmt.Sprintf("at most %d", maxNATSServers),
		read: func(d *document, key string) { *at = d.natsServers(key) },
	}
}

// natsName is a part of names in NATS: a letter case counts, and no dot, blank or wildcard may be in it.
func natsName(at *string, byDefault string) value {
	return value{
		field: at, kind: "text", byDefault: strconv.Quote(byDefault), limits: fmt.Sprintf("1 to %d of A-Z a-z 0-9 _ -", maxNATSName),
		read: func(d *document, key string) { *at = d.natsName(key, byDefault) },
	}
}

func natsCredentials(at *secret.Secret) value {
	return value{
		field: at, kind: "path; other users may have no access", byDefault: `""`,
		read: func(d *document, key string) { *at = d.natsCredentials(key) },
	}
}

func (d *document) natsServers(key string) (servers []string) {
	const example = `["tls://n1:4222", "tls://n2:4222", "tls://n3:4222"]`
	v, set := d.lookup(key)
	if !set {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of URLs, for example %s", kindOf(v), example)
		return nil
	}
	if len(list) > maxNATSServers {
		d.problem(key, "has %d servers; give at most %d", len(list), maxNATSServers)
		return nil
	}
	for _, v := range list {
		server, ok := v.(string)
		if !ok {
			d.problem(key, "has %s in the list; write URLs in quotes, for example %s", kindOf(v), example)
			continue
		}
		switch why := checkNATSServer(server); {
		case why != "":
			d.problem(key, "%s", why)
		case slices.Contains(servers, server):
			d.problem(key, "%s is given twice; remove one", quote(server))
		case len(servers) > 0 && natsScheme(servers[0]) != natsScheme(server):
			d.problem(key, "%s and %s differ in TLS; use tls:// for all", quote(servers[0]), quote(server))
		default:
			servers = append(servers, server)
		}
	}
	return servers
}

func natsScheme(server string) string {
	scheme, _, _ := strings.Cut(server, "://")
	return scheme
}

// checkNATSServer says what is wrong with a URL; "": nothing. A URL that may hold a password is not repeated.
func checkNATSServer(server string) string {
	const example = `write for example "tls://n1:4222"`
	if strings.Contains(server, "@") {
		return "has a user name or password in it; remove them and use fleet.creds_file or fleet.cert_file"
	}
	u, err := url.Parse(server)
	if len(server) > maxNATSServer || err != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || u.Hostname() == "" {
		return quote(server) + " is not the URL of a NATS server; " + example
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
		return quote(server) + " has no port from 1 to 65535; " + example
	}
	switch u.Scheme {
	case natsTLS:
		return ""
	case natsPlain:
		if !isLoopback(net.JoinHostPort(u.Hostname(), u.Port())) {
			return quote(server) + " is not a loopback address, and messages would be sent unencrypted; use tls://"
		}
		return ""
	}
	return quote(server) + " does not begin with tls:// or nats://; " + example
}

func (d *document) natsName(key, byDefault string) string {
	example := byDefault
	if example == "" {
		example = "gw-a"
	}
	s, ok := d.text(key, example)
	if !ok || s == byDefault {
		return byDefault
	}
	if len(s) < 1 || len(s) > maxNATSName || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		d.problem(key, "%s is not a name here; use 1 to %d of A-Z a-z 0-9 _ -, for example %q", quote(s), maxNATSName, example)
		return byDefault
	}
	return s
}

// natsCredentials reads a credentials file: a token and the seed of a key, each between its own lines.
func (d *document) natsCredentials(key string) secret.Secret {
	path, content, ok := d.content(key, 0o007)
	if !ok {
		return nil
	}
	if !bytes.Contains(content, []byte("BEGIN NATS USER JWT")) || !bytes.Contains(content, []byte("BEGIN USER NKEY SEED")) {
		d.problem(key, "%q is not a credentials file of NATS; make one with nsc generate creds", path)
		return nil
	}
	return secret.Secret(content)
}

// fleetRules reads the files for TLS too.
func (d *document) fleetRules(c *Config) {
	f := &c.Fleet
	pool := d.certPool("fleet.ca_file")
	certificates := d.keyPair("fleet.cert_file", "fleet.key_file")
	if v, set := d.lookup("fleet.servers"); !set || len(f.Servers) == 0 {
		if list, is := v.([]any); set && !(is && len(list) == 0) {
			return // it is refused already
		}
		for _, s := range c.table() {
			if _, set := d.lookup(s.Key); set && s.needs == "fleet.servers" {
				d.problem(s.Key, "does nothing without servers; set fleet.servers or remove the line")
			}
		}
		return
	}
	if f.Name == "" {
		d.problem("fleet.servers", "needs a name for this gateway; set fleet.name")
	}
	switch _, set := d.lookup("fleet.deliver"); {
	case !set:
		d.problem("fleet.servers", "needs fleet.deliver, which says who reads the stream; write deliver = false: consumers read it themselves")
	case f.Deliver:
		d.problem("fleet.deliver", "this version does not deliver from the stream; write false, and have consumers read it")
	}
	if least := 2 * c.Publish.Tolerance; f.Dedup < least {
		d.problem("fleet.dedup", "%s is less than 2 x publish.tolerance; use at least %q, and longer to cover an outage", f.Dedup, Short(least))
	}
	if natsScheme(f.Servers[0]) == natsTLS {
		f.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: certificates}
	} else {
		for _, key := range []string{"fleet.ca_file", "fleet.cert_file", "fleet.key_file"} {
			if d.isSet(key) {
				d.problem(key, "has no effect with nats URLs; use tls:// in fleet.servers, or remove the line")
			}
		}
	}
	d.backendUnused(&c.Backend)
}

// backendUnused reports settings of [backend] that mean nothing to a stream. A line that has the default may stay: files that
// bouncerctl init has written name every setting.
func (d *document) backendUnused(b *Backend) {
	byDefault := map[string]bool{
		"backend.url":                 b.URL == defaultBackendURL,
		"backend.max_age":             b.MaxAge == defaultBackendMaxAge,
		"backend.batch":               b.Batch == 1,
		"backend.order":               b.Order == OrderDevice,
		"backend.fatal_statuses":      len(b.FatalStatuses) == 0,
		"backend.bearer_token_file":   !d.isSet("backend.bearer_token_file"),
		"backend.signing_secret_file": !d.isSet("backend.signing_secret_file"),
		"backend.ca_file":             !d.isSet("backend.ca_file"),
		"backend.cert_file":           !d.isSet("backend.cert_file"),
		"backend.key_file":            !d.isSet("backend.key_file"),
	}
	for _, s := range new(Config).table() { // in the order of the documents
		is, unused := byDefault[s.Key]
		if _, set := d.lookup(s.Key); set && unused && !is {
			d.problem(s.Key, "has no effect with fleet.servers, because messages go to NATS; remove the line")
		}
	}
}

// Defaults of [backend] that fleetRules knows.
const (
	defaultBackendURL    = "http://localhost:5000/device/{device_id}/data"
	defaultBackendMaxAge = 72 * time.Hour
)
