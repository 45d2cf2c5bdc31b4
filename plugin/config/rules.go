package config

import (
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// storeRoom is what a store needs in addition to the largest message.
const storeRoom = 128 << 10

// rules checks what concerns more than one setting, or more than the range of one, and makes what several give together.
func (d *document) rules(c *Config) {
	d.publishRules(&c.Publish)
	d.backendRules(&c.Backend)
	d.fleetRules(c)
	d.httpRules(&c.HTTP)
	d.registryRules(&c.Registry)
	d.auditRules(&c.Audit)
	d.keepTopicsApart(c)
	d.roomRule("journal.max_bytes", c.Journal.MaxBytes, c.Publish.MaxBytes)
	d.roomRule("dead_letters.max_bytes", c.DeadLetters.MaxBytes, c.Publish.MaxBytes)
}

// roomRule: a store has room for the largest message.
func (d *document) roomRule(key string, room int64, message int) {
	if least := int64(message) + storeRoom; room < least {
		d.problem(key, "%d bytes is too little for messages of publish.max_bytes (%d); use at least %d", room, message, least)
	}
}

func (d *document) publishRules(p *Publish) {
	if p.Tolerance%time.Second != 0 {
		d.problem("publish.tolerance", "%s is not a whole number of seconds; timestamps are in seconds, so use for example %q", p.Tolerance, "5m")
	}
	switch {
	case p.Rate > 0 && p.Burst == 0:
		p.Burst = oneSecond(p.Rate)
	case p.Rate == 0 && p.Burst > 0:
		d.problem("publish.burst", "does nothing without a rate; set publish.rate or remove the line")
	}
}

// backendRules reads the files for TLS too.
func (d *document) backendRules(b *Backend) {
	switch {
	case b.Batch > 1 && strings.Contains(b.URL, DeviceID):
		d.problem("backend.batch", "messages of many devices go in one request, so the URL cannot name one; remove %s from backend.url, or the line", DeviceID)
	case b.Batch == 1 && d.isSet("backend.linger"):
		d.problem("backend.linger", "does nothing without a batch; set backend.batch or remove the line")
	}
	pool := d.certPool("backend.ca_file")
	certificates := d.keyPair("backend.cert_file", "backend.key_file")
	if b.URL == "" { // it is refused already
		return
	}
	if isHTTPS(b.URL) {
		b.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: certificates}
		return
	}
	for _, key := range []string{"backend.ca_file", "backend.cert_file", "backend.key_file"} {
		if d.isSet(key) {
			d.problem(key, "has no effect with an http URL; use https in backend.url, or remove the line")
		}
	}
}

// httpRules reads the files for TLS too.
func (d *document) httpRules(h *HTTP) {
	if certificates := d.keyPair("http.cert_file", "http.key_file"); certificates != nil {
		h.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: certificates}
	}
	if h.Listen != "" && !d.isSet("http.token_file") {
		d.problem("http.listen", "needs a bearer token; set http.token_file")
	}
	if h.Listen != "" && !d.isSet("http.cert_file") && !isLoopback(h.Listen) {
		d.problem("http.listen", "%q is not a loopback address, and the token would be sent unencrypted; set http.cert_file and http.key_file, or listen on 127.0.0.1", h.Listen)
	}
}

func (d *document) registryRules(r *Registry) {
	if _, err := hex.DecodeString(string(r.Key)); r.Key != nil && (err != nil || len(r.Key) != 64) {
		d.problem("registry.key_file", "does not hold a key, which is 64 hexadecimal digits; make one with bouncerctl registry key FILE")
	}
}

func (d *document) auditRules(a *Audit) {
	if a.MaxBytes > 0 && a.MaxBytes < 64<<10 {
		d.problem("audit.max_bytes", "%d bytes is out of range; use 65536 or more, or 0 for any size", a.MaxBytes)
	}
	for _, key := range []string{"audit.max_bytes", "audit.keep"} {
		if a.File == "" && d.isSet(key) {
			d.problem(key, "does nothing without a file; set audit.file or remove the line")
		}
	}
}

// keepTopicsApart reports device topics that are gated, or that two features share: the plugin would refuse what it sends
// itself, or could not tell one from the other.
func (d *document) keepTopicsApart(c *Config) {
	type named struct{ key, topic string }
	var seen []named
	for _, filter := range c.Publish.Topics {
		seen = append(seen, named{"publish.topics", filter})
	}
	own := []named{
		{"response.topic", c.Response.Topic},
		{"command.topic", c.Command.Topic},
		{"rejected.topic", c.Rejected.Topic},
	}
	if c.HTTP.Listen != "" {
		own = append(own, named{"command.topic", c.Command.ResultTopic()})
	}
	for _, n := range own {
		if n.topic == "" {
			continue
		}
		i := slices.IndexFunc(seen, func(s named) bool { return overlap(s.topic, n.topic) })
		if i >= 0 {
			key, text := n.key, fmt.Sprintf("%s overlaps with %s of %s", quote(n.topic), quote(seen[i].topic), seen[i].key)
			if _, set := d.lookup(key); !set {
				key, text = seen[i].key, fmt.Sprintf("%s overlaps with %s of %s", quote(seen[i].topic), quote(n.topic), n.key)
			}
			d.problem(key, "%s: both would use the same topic; change one", text)
		}
		seen = append(seen, n)
	}
}

// isHTTPS: url has been checked.
func isHTTPS(url string) bool {
	const scheme = "https:"
	return len(url) > len(scheme) && strings.EqualFold(url[:len(scheme)], scheme)
}
