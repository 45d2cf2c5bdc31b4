package config

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzParse: whatever parses is within its ranges, whatever does not is refused
// with the file's name first.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"",
		"state_dir = \"/var/lib/x\"\ndatabase = 'd.db'\n",
		"[publish]\ntopics = [\"device/+/data\", \"a/+\"]\ntolerance = \"5m\"\nmax_bytes = \"64KiB\"\nrate = 0.5\nburst = 3\n",
		"[backend]\nurl = \"https://h:1/{device_id}?a=b\"\ntimeout = \"5s\"\nconcurrency = 64\nmax_age = \"72h\"\nca_file = \"x\"\n",
		"[response]\ntopic = \"\"\n[command]\ntopic = \"c/{device_id}\"\n[rejected]\ntopic = \"r/{device_id}\"\n[acl]\nothers = \"allow\"\n",
		"[journal]\nmax_bytes = \"1GiB\"\nsync = \"always\"\n[http]\nlisten = \"127.0.0.1:8080\"\ntoken_file = \"t\"\n",
		"publish = { rate = 1, topics = [\n# comment\n'+'] }\r\n",
		"publish.rate.x = 1\n[[publish]]\n\"a.b\".c = 1979-05-27T07:32:00Z\n",
		"[publish]\nrate = nan\nburst = 0x10\ntolerance = \"\"\"5m\"\"\"\n",
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, source []byte) {
		c, err := parse("b.toml", dir, source)
		if err == nil {
			checkInvariants(t, c)
			return
		}
		if !strings.HasPrefix(err.Error(), "b.toml:") {
			t.Errorf("error %q does not begin with the file's name", err)
		}
		var typed *Error
		if !errors.As(err, &typed) {
			t.Errorf("%T is not an *Error", err)
		}
	})
}

func checkInvariants(t *testing.T, c *Config) {
	t.Helper()
	holds := map[string]bool{
		"paths":       filepath.IsAbs(c.StateDir) && filepath.IsAbs(c.Database),
		"topics":      len(c.Publish.Topics) >= 1 && len(c.Publish.Topics) <= 16,
		"tolerance":   c.Publish.Tolerance >= time.Second && c.Publish.Tolerance <= 24*time.Hour && c.Publish.Tolerance%time.Second == 0,
		"max_bytes":   c.Publish.MaxBytes >= 256 && c.Publish.MaxBytes <= 268435455,
		"rate":        c.Publish.Rate >= 0 && c.Publish.Rate <= 1e6,
		"burst":       (c.Publish.Burst > 0) == (c.Publish.Rate > 0) && c.Publish.Burst <= 1e6,
		"url":         strings.HasPrefix(strings.ToLower(c.Backend.URL), "http"),
		"timeout":     c.Backend.Timeout >= 100*time.Millisecond && c.Backend.Timeout <= 5*time.Minute,
		"concurrency": c.Backend.Concurrency >= 1 && c.Backend.Concurrency <= 4096,
		"max_age":     c.Backend.MaxAge >= time.Minute,
		"https":       (c.Backend.TLS != nil) == strings.HasPrefix(strings.ToLower(c.Backend.URL), "https:"),
		"others":      c.ACL.Others == "auto" || c.ACL.Others == "defer" || c.ACL.Others == "allow",
		"sync":        c.Journal.Sync >= 0 && c.Journal.Sync <= 10*time.Second,
		"command":     strings.Count(c.Command.Topic, DeviceID) == 1,
	}
	for _, filter := range c.Publish.Topics {
		holds["filter "+filter] = strings.Count(filter, "+") == 1 && !strings.Contains(filter, "#") && filter[0] != '$'
		for _, topic := range []string{c.Response.Topic, c.Command.Topic, c.Rejected.Topic} {
			holds[filter+" apart from "+topic] = topic == "" || !overlap(filter, topic)
		}
	}
	for what, ok := range holds {
		if !ok {
			t.Errorf("%s: %+v", what, c)
		}
	}
}
