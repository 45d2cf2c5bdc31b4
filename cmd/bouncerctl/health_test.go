package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHealth: what the listener says of itself decides the exit code.
func TestHealth(t *testing.T) {
	dir := t.TempDir()
	wrong := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/healthz" || r.Header.Get("Authorization") != "Bearer token":
			http.NotFound(w, r)
		case wrong != "":
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, `{"detail":%q}`, wrong)
		default:
			fmt.Fprintln(w, `{"status":"ok"}`)
		}
	}))
	defer server.Close()
	file := filepath.Join(dir, "bouncer.toml")
	writeFile(t, filepath.Join(dir, "token"), "token\n")
	if err := os.Chmod(filepath.Join(dir, "token"), 0o600); err != nil {
		t.Fatal(err)
	}
	listen := func(addr string) {
		writeFile(t, file, fmt.Sprintf("[http]\nlisten = %q\ntoken_file = \"token\"\n", addr))
	}
	listen(server.Listener.Addr().String())
	if got := succeed(t, "health", "--config", file); got != "ok\n" {
		t.Errorf("%q", got)
	}
	wrong = "the registry cannot be read"
	if got := bouncerctl(t, "", "health", "--config", file); got.code != 1 || got.stderr != "bouncerctl: not well: "+wrong+"\n" {
		t.Errorf("%+v", got)
	}
	wrong = "\u009b2J"
	if got := bouncerctl(t, "", "health", "--config", file); got.code != 1 || got.stderr != "bouncerctl: not well: \"\\u009b2J\"\n" {
		t.Errorf("%+v", got)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen(free.Addr().String())
	free.Close()
	if got := bouncerctl(t, "", "health", "--config", file); got.code != 1 || !strings.Contains(got.stderr, "connection refused") {
		t.Errorf("%+v", got)
	}
	writeFile(t, file, "")
	if got := bouncerctl(t, "", "health", "--config", file); got.code != exitUnasked || !strings.Contains(got.stderr, "there is no HTTP listener") {
		t.Errorf("%+v", got)
	}
}
