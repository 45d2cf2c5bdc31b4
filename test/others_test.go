package test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestOthers has the ways to say who decides about what is not the gateway's concern, and what it comes to for a dashboard
// that an acl_file, if there is one, confines to site/#.
func TestOthers(t *testing.T) {
	const (
		acl     = "user dashboard\ntopic readwrite site/#\nuser monitor\ntopic read #\n"
		include = "include_dir {dir}/persistence" // a directory that is there, and empty
	)
	type rights struct{ site, elsewhere bool }
	for _, c := range []struct {
		name, others, conf string
		files              map[string]string
		settled            string // what the log says, after "settled "
		want               rights
		// reload is added to this file before SIGHUP.
		reload, added string
		resettled     string
		then          rights
	}{
		{
			name: "auto, nothing else", others: "auto",
			settled: `others=allow why="the broker's configuration has neither acl_file nor another plugin"`, want: rights{true, true},
		},
		{
			name: "auto, acl_file", others: "auto", conf: "acl_file {dir}/acl",
			settled: `others=defer why="{dir}/mosquitto.conf:5: acl_file {dir}/acl"`, want: rights{true, false},
		},
		{
			name: "auto, acl_file in include_dir", others: "auto", conf: include,
			files:   map[string]string{"persistence/access.conf": "# who may what\nacl_file {dir}/acl\n"},
			settled: `others=defer why="{dir}/persistence/access.conf:2: acl_file {dir}/acl"`, want: rights{true, false},
		},
		{
			name: "defer, nothing else", others: "defer",
			settled: `others=defer why="set in bouncer.toml"`, want: rights{false, false},
		},
		{
			name: "defer, acl_file", others: "defer", conf: "acl_file {dir}/acl",
			settled: `others=defer why="set in bouncer.toml"`, want: rights{true, false},
		},
		{
			name: "allow, acl_file", others: "allow", conf: "acl_file {dir}/acl",
			settled: `others=allow why="set in bouncer.toml"`, want: rights{true, true},
		},
		{
			name: "acl_file added", others: "auto",
			settled: `others=allow `, want: rights{true, true},
			reload: "mosquitto.conf", added: "acl_file {dir}/acl\n",
			resettled: `: acl_file {dir}/acl"`, then: rights{true, false},
		},
		{
			name: "acl_file added in include_dir", others: "auto", conf: include,
			settled: `others=allow `, want: rights{true, true},
			reload: "persistence/access.conf", added: "acl_file {dir}/acl\n",
			resettled: `others=defer why="{dir}/persistence/access.conf:1: acl_file {dir}/acl"`, then: rights{true, false},
		},
		{
			name: "acl_file added to a broker told to allow", others: "allow",
			settled: `others=allow why="set in bouncer.toml"`, want: rights{true, true},
			reload: "mosquitto.conf", added: "acl_file {dir}/acl\n",
			resettled: `others=allow why="set in bouncer.toml"`, then: rights{true, true},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"acl": acl}
			maps.Copy(files, c.files)
			g := harness.New(t, broker.Options{
				Devices: []string{"sensor_001"}, Conf: c.conf, Settings: map[string]any{"acl.others": c.others}, Files: files,
			})
			here := func(text string) string { return strings.ReplaceAll(text, "{dir}", g.Broker.Dir) }
			ignores := g.Broker.Version().AtLeast(2, 1, 0) // nothing is left to settle: the acl_file, if any, decides
			settled := func(mark int, want string) {
				t.Helper()
				if ignores {
					want = `others=ignore why="Mosquitto 2.1 lets a plugin ignore a question"`
				}
				line, err := g.Broker.WaitLog(g.Limit(), mark, broker.Contains("bouncer: access to topics that are not gated "))
				g.Must(err)
				if !strings.Contains(line, here(want)) {
					t.Errorf("the log says\n\t%s\nwhich has not\n\t%s", line, here(want))
				}
			}
			check := func(want rights, aclFile bool) {
				t.Helper()
				if ignores {
					want = rights{true, !aclFile}
				}
				dashboard := g.Connect(g.Device("dashboard"), harness.MQTT5)
				for topic, allowed := range map[string]bool{"site/status": want.site, "plant/status": want.elsewhere} {
					if ack := g.Publish(dashboard, topic, 1, []byte("22")); ack.Accepted() != allowed {
						t.Errorf("a dashboard publishes to %s: %v", topic, ack)
					}
				}
				d := g.Device("sensor_001")
				c := g.Connect(d, harness.MQTT5)
				g.Accept(c, 1, d.Sign("22"))
				g.Refuse(c, d.DataTopic(), 1, device.Message{Bytes: []byte("22")}, "malformed")
				g.Refuse(c, "site/status", 1, device.Message{Bytes: []byte("22")}, "forbidden_topic")
				g.RefuseSubscription(c, "#")
			}
			settled(0, c.settled)
			check(c.want, strings.Contains(c.conf+c.files["persistence/access.conf"], "acl_file"))
			if c.reload != "" {
				before, err := os.ReadFile(g.Broker.Path(c.reload))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				g.Must(g.Broker.WriteFile(c.reload, append(before, here(c.added)...)))
				mark := g.Broker.Log().Mark()
				g.Must(g.Broker.Signal(syscall.SIGHUP))
				settled(mark, c.resettled)
				check(c.then, true)
			}
			g.NothingElse("sensor_001")
		})
	}
}
