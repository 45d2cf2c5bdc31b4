package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/httpd/api"
	"mosquitto-bouncer/plugin/textfile"
)

// maxAnswerBytes bounds an answer of the listener.
const maxAnswerBytes = 4 << 20

// A listener is the gateway's, which tells what it does.
type listener struct {
	url    string // without a path
	token  string
	client *http.Client
}

// errNoListener says that bouncer.toml has none.
var errNoListener = errors.New("there is no HTTP listener; set [http] listen and token_file, and restart the broker")

// source is the listener that --url names, or that of bouncer.toml.
func (o *topOptions) source(configFile string, stdin io.Reader) (*listener, error) {
	if o.url == "" {
		cfg, err := config.Load(configFile)
		if err != nil {
			return nil, err
		}
		l, err := listenerOf(cfg)
		if err != nil {
			err = fmt.Errorf("%s: %w", configFile, err)
		}
		return l, err
	}
	l, trust := newListener(strings.TrimSuffix(o.url, "/"))
	if o.tokenFile != "" {
		content, err := readFrom("--token-file", o.tokenFile, stdin)
		if err != nil {
			return nil, err
		}
		l.token = strings.TrimSpace(string(content))
	}
	if o.caFile != "" {
		content, err := textfile.ReadFile(o.caFile)
		if err != nil {
			return nil, err
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("--ca-file: %s has no certificate in PEM", o.caFile)
		}
	}
	return l, nil
}

func newListener(url string) (*listener, *tls.Config) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	return &listener{url: url, client: &http.Client{Transport: &http.Transport{TLSClientConfig: trust}, Timeout: 5 * time.Second}}, trust
}

// listenerOf is the listener of bouncer.toml, as it is reached from here.
func listenerOf(cfg *config.Config) (*listener, error) {
	if cfg.HTTP.Listen == "" {
		return nil, errNoListener
	}
	l, trust := newListener("http://" + reachable(cfg.HTTP.Listen))
	l.token = string(cfg.HTTP.Token)
	if cfg.HTTP.TLS != nil {
		// It is this very certificate that is expected, whatever name the listener is reached by here.
		l.url = strings.Replace(l.url, "http", "https", 1)
		leaf, err := x509.ParseCertificate(cfg.HTTP.TLS.Certificates[0].Certificate[0])
		if err != nil {
			return nil, err
		}
		trust.RootCAs = x509.NewCertPool()
		trust.RootCAs.AddCert(leaf)
		switch {
		case len(leaf.DNSNames) > 0:
			trust.ServerName = leaf.DNSNames[0]
		case len(leaf.IPAddresses) > 0:
			trust.ServerName = leaf.IPAddresses[0].String()
		}
	}
	return l, nil
}

// reachable is where to connect to for what is listened on.
func reachable(listen string) string {
	for _, every := range []string{"0.0.0.0:", "[::]:", ":"} {
		if port, ok := strings.CutPrefix(listen, every); ok {
			return "localhost:" + port
		}
	}
	return listen
}

// ask asks for a path, with the token. The caller closes the body.
func (l *listener) ask(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+path, nil)
	if err != nil {
		return nil, err
	}
	if l.token != "" {
		request.Header.Set("Authorization", "Bearer "+l.token)
	}
	response, err := l.client.Do(request)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("%w; is the broker running, and does it listen there?", err)
	}
	return response, err
}

// get asks for a path that is answered with 200. The error is one line.
func (l *listener) get(ctx context.Context, path string) ([]byte, error) {
	response, err := l.ask(ctx, path)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusUnauthorized && l.token == "":
		return nil, fmt.Errorf("%s: a token is required (401); name its file with --token-file", l.url+path)
	case response.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%s: the token is not the listener's (401); restart the broker if token_file has changed", l.url+path)
	case response.StatusCode != http.StatusOK:
		var problem struct{ Reason, Detail string }
		if json.Unmarshal(body, &problem) == nil && problem.Detail != "" {
			return nil, fmt.Errorf("%s: answered %s: %s", l.url+path, output.Printable(response.Status), output.Printable(problem.Detail))
		}
		return nil, fmt.Errorf("%s: answered %s", l.url+path, output.Printable(response.Status))
	}
	return body, nil
}

// device asks for one device.
func (l *listener) device(ctx context.Context, id string) (*api.Device, error) {
	d := new(api.Device)
	return d, l.getJSON(ctx, "/v1/devices/"+url.PathEscape(id), d)
}

// slowest asks for the n devices whose messages have waited longest.
func (l *listener) slowest(ctx context.Context, n int) ([]api.Device, error) {
	var list api.Devices
	err := l.getJSON(ctx, fmt.Sprintf("/v1/devices?order=slowest&limit=%d", n), &list)
	return list.Devices, err
}

func (l *listener) getJSON(ctx context.Context, path string, v any) error {
	body, err := l.get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w", l.url+path, err)
	}
	return nil
}

// oldest is how long the oldest message of a device has waited.
func oldest(d *api.Device) string {
	if d.OldestSeconds == nil {
		return "-"
	}
	age := time.Duration(*d.OldestSeconds * float64(time.Second))
	if age < 2*time.Minute {
		return fmt.Sprintf("%.1f s", age.Seconds())
	}
	return output.Roughly(age)
}
