package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// trouble is an error in words for the log: what is wrong, and what to do. It wraps its cause.
type trouble struct {
	what  string
	cause error
}

func (e *trouble) Error() string { return e.what }
func (e *trouble) Unwrap() error { return e.cause }

func say(cause error, format string, args ...any) error {
	return &trouble{fmt.Sprintf(format, args...), cause}
}

var (
	errSpeaksTLS = errors.New("that port of the backend speaks TLS: write https:// in backend.url")
	errPlain     = errors.New("that port of the backend does not speak TLS: write http:// in backend.url, or name the port that does")
)

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, fasthttp.ErrTimeout)
}

// alert returns the name of the TLS alert with which the other side has ended the connection, "" if it has not.
func alert(err error) string {
	e, ok := errors.AsType[*net.OpError](err)
	if !ok || e.Op != "remote error" || e.Err == nil {
		return ""
	}
	return strings.TrimPrefix(e.Err.Error(), "tls: ")
}

func isAlert(err error) bool { return alert(err) != "" }

// explainDial explains why there is no connection to addr.
func explainDial(err error, addr string, timeout time.Duration) error {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if e.IsNotFound {
			return say(err, "host name %s is unknown: correct backend.url, or the name server", e.Name)
		}
		return say(err, "host name %s cannot be resolved now: the name server does not answer", e.Name)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return say(err, "connection refused: nothing listens on %s; start the backend, or correct backend.url", addr)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return say(err, "no route to %s: check the network, or correct backend.url", addr)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return say(err, "no file descriptor left for a connection: raise the broker's limit (LimitNOFILE), or lower backend.concurrency")
	case isTimeout(err):
		return say(err, "no connection to %s within %s: check the network and firewalls, or correct backend.url", addr, timeout)
	}
	return err
}

// tlsPeer is what a handshake shows of the backend.
type tlsPeer struct {
	host  string
	asked bool // for a client certificate
	had   bool // there was one to show
	sent  bool // and it was of a kind and a CA that the backend takes
}

// watch returns a configuration for one connection to host that notes what is asked for.
func (p *tlsPeer) watch(config *tls.Config, host string) *tls.Config {
	config = config.Clone()
	if config.ServerName == "" {
		config.ServerName = host
	}
	p.host = config.ServerName
	own := config.Certificates
	p.had = len(own) > 0
	config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		p.asked = true
		for i := range own {
			if asked.SupportsCertificate(&own[i]) == nil {
				p.sent = true
				return &own[i], nil
			}
		}
		return new(tls.Certificate), nil
	}
	return config
}

// explain puts an error of the connection in words.
func (c *conn) explain(err error) error {
	if c.peer != nil {
		if e := c.peer.explain(err); e != nil {
			return e
		}
	} else if errors.Is(err, errUnread) {
		return say(err, "backend sends data before it gets a request: that port does not speak HTTP; correct backend.url")
	}
	if _, is := errors.AsType[*unreadableError](err); is {
		return err
	}
	switch {
	case errors.Is(err, io.EOF):
		return say(err, "backend closed the connection without an answer")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return say(err, "backend broke the connection before its answer was complete")
	case isTimeout(err):
		return say(err, "no answer within %s (backend.timeout)", c.timeout)
	}
	return err
}

// explain explains an error of TLS; nil if it is another one.
func (p *tlsPeer) explain(err error) error {
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if bytes.HasPrefix(e.RecordHeader[:], []byte("HTTP/")) {
			return say(err, "that port of the backend speaks plain HTTP: write http:// in backend.url, or name the port that speaks TLS")
		}
		return say(err, "%s", errPlain.Error())
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		names := append([]string(nil), e.Certificate.DNSNames...)
		for _, ip := range e.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		if len(names) == 0 {
			return say(err, "backend's certificate names no host: renew it with the name %s (subjectAltName)", e.Host)
		}
		return say(err, "backend's certificate is for %s, not %s: use its name in backend.url, or renew the certificate",
			strings.Join(names[:min(len(names), 5)], ", "), e.Host)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return explainInvalid(e, err)
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		issuer := ""
		if e.Cert != nil {
			issuer = fmt.Sprintf(" %q", e.Cert.Issuer.String())
		}
		return say(err, "backend's certificate is signed by unknown authority%s: name the CA's certificate in backend.ca_file", issuer)
	}
	return p.explainEnd(err)
}

func explainInvalid(e x509.CertificateInvalidError, err error) error {
	switch e.Reason {
	case x509.Expired:
		if now := time.Now(); now.Before(e.Cert.NotBefore) {
			return say(err, "backend's certificate is valid only from %s on: check this machine's clock, or renew the certificate", e.Cert.NotBefore.UTC().Format(time.RFC3339))
		}
		return say(err, "backend's certificate, or its CA's, expired at %s: renew it", e.Cert.NotAfter.UTC().Format(time.RFC3339))
	case x509.IncompatibleUsage:
		return say(err, "backend's certificate is not one for servers: renew it with the extended key usage serverAuth")
	case x509.NotAuthorizedToSign:
		return say(err, "backend's certificate is signed by a certificate that is not a CA's: renew it, or correct backend.ca_file")
	}
	return say(err, "backend's certificate is not valid: %v; renew it", e)
}

// explainEnd explains a connection that the backend has ended: with an alert, or, where it asked for a certificate and
// got none that it takes, without.
func (p *tlsPeer) explainEnd(err error) error {
	name := alert(err)
	closed := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	switch {
	case p.asked && !p.sent && (name != "" || closed):
		if p.had {
			return say(err, "backend wants a client certificate of another CA or kind than the one in backend.cert_file")
		}
		return say(err, "backend wants a client certificate: set backend.cert_file and backend.key_file")
	case name == "" && closed || name == "":
		return nil
	}
	switch name {
	case "certificate required":
		return say(err, "backend wants a client certificate: set backend.cert_file and backend.key_file")
	case "expired certificate":
		return say(err, "backend says that the client certificate in backend.cert_file has expired: renew it")
	case "revoked certificate", "bad certificate", "unknown certificate", "unknown certificate authority", "access denied", "unsupported certificate":
		if p.sent {
			return say(err, "backend refuses the client certificate in backend.cert_file (%s): have it signed by a CA that the backend trusts", name)
		}
	case "unrecognized name":
		return say(err, "backend has no certificate for %s: use another name in backend.url", p.host)
	case "protocol version not supported", "protocol version":
		return say(err, "backend speaks no version of TLS that is safe: let it speak TLS 1.2 or 1.3")
	case "handshake failure", "insufficient security level":
		return say(err, "backend has no cipher or key in common with this client: let it speak TLS 1.2 or 1.3 with current ciphers")
	}
	return say(err, "backend ended TLS: %s", name)
}
