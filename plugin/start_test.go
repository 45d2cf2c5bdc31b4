package plugin

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestClosersInOrder(t *testing.T) {
	_, settings := httpSettings(t)
	g := startGateway(t, "[audit]\nfile = \""+filepath.Join(t.TempDir(), "audit.jsonl")+"\"\n"+settings)
	var got []string
	for _, one := range slices.Backward(g.closers.all) {
		what, _, _ := strings.Cut(one.what, ";")
		got = append(got, what)
	}
	want := []string{
		"the HTTP listener", "reload", "the checks of the stores", "what the broker has not published", "the store of commands", "the outbox",
		"orders", "the memory of retained messages", "the device ids", "the registry", "the waker", "the audit log",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEveryCloserIsCalled(t *testing.T) {
	log := new(bytes.Buffer)
	c := closers{log: slog.New(slog.NewTextHandler(log, nil))}
	var called []string
	c.do("first", func() { called = append(called, "first") })
	c.do("second", func() { panic("broken") })
	c.add("third", func() error { called = append(called, "third"); return errors.New("no disk") })
	c.close()
	c.close()
	if !slices.Equal(called, []string{"third", "first"}) {
		t.Errorf("%q", called)
	}
	for _, part := range []string{"no disk", "third", "broken", "second"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("no %q in %s", part, log)
		}
	}
}
