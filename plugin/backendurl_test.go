package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/forward/webhook"
)

// The settings and the sink accept the same URLs.
func TestBackendURL(t *testing.T) {
	for url, valid := range map[string]bool{
		"http://h/{device_id}":                     true,
		"https://h/in?d={device_id}&v=1":           true,
		"https://h/{device_id}?d={device_id}":      true,
		"http://h/in?d={device}":                   false,
		"http://{device_id}.h/":                    false,
		"http://h:0/":                              false,
		"http://a,b/":                              false,
		"http://u:p@h/":                            false,
		"http://h/#x":                              false,
		"http://h/a b":                             false,
		"ftp://h/":                                 false,
		"http://h/" + strings.Repeat("x", 1<<11-9): true,
		"http://h/" + strings.Repeat("x", 1<<11-8): false,
	} {
		file := filepath.Join(t.TempDir(), "bouncer.toml")
		if err := os.WriteFile(file, fmt.Appendf(nil, "[backend]\nurl = %q\n", url), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load(file)
		if refused := err != nil && strings.Contains(err.Error(), "backend.url: "); refused == valid {
			t.Errorf("settings, %q: %v", url, err)
		}
		if _, err := webhook.New(webhook.Config{URL: url}); (err == nil) != valid {
			t.Errorf("webhook, %q: %v", url, err)
		}
	}
}
