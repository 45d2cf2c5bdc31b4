// Package testkit is what the tests of several packages need: a log that can be read while it is written, and waiting for
// a condition. Only tests import it.
package testkit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Log is a log that a test can read while it is written. The zero value is empty.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Count returns how many lines contain all of the parts.
func (l *Log) Count(parts ...string) (n int) {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(line, part)
		}
		if all {
			n++
		}
	}
	return n
}

// Logger writes to the log.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Eventually waits for a condition, for 20 seconds at most.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// PrivateKey returns a new private key: "Ed25519" or "ECDSA P-256", as publickey.Algorithm has it.
func PrivateKey(t testing.TB, algorithm string) (key crypto.Signer) {
	t.Helper()
	var err error
	switch algorithm {
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "ECDSA P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		t.Fatalf("no algorithm %q", algorithm)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}
