package test

import (
	"bytes"
	"debug/elf"
	"os"
	"slices"
	"strings"
	"testing"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
)

// ready is what the log says of a plugin that started.
var ready = broker.Contains("bouncer: ready ")

func TestStarts(t *testing.T) {
	b := broker.Start(t, broker.Options{BouncerTOML: harness.SoundTOML, Devices: []string{"sensor_001", "sensor_002"}})
	want := strings.ReplaceAll(" config={dir}/bouncer.toml devices=2 topics=[device/+/data]"+
		" backend=http://127.0.0.1:9/device/{device_id}/data", "{dir}", b.Dir)
	lines := b.Log().Find(0, ready)
	if len(lines) != 1 || !strings.HasSuffix(lines[0], want) {
		t.Errorf("a sound configuration: the log says %q, want one line that ends in %q", lines, want)
	}
}

func TestRefusesToStart(t *testing.T) {
	const (
		pluginAlone = "plugin {plugin}"
		options     = pluginAlone + "\nplugin_opt_config_file "
	)
	for _, c := range []struct {
		name string
		// was is replaced by is in bouncer.toml.
		was, is string
		// plugin stands for the plugin's lines in mosquitto.conf; empty: the usual ones.
		plugin string
		// listener is added after them.
		listener string
		prepare  func(t *testing.T, b *broker.Broker)
		// want are the beginnings of the plugin's lines in the log, in order, and what else each says.
		want [][]string
	}{
		{
			name:   "no configuration file named",
			plugin: pluginAlone,
			want: [][]string{{`plugin_opt_config_file is missing; `,
				`add the line "plugin_opt_config_file /etc/mosquitto-bouncer/bouncer.toml" below the plugin line`}},
		},
		{
			name:     "unknown plugin option",
			listener: "plugin_opt_tolerance 5m",
			want: [][]string{{`plugin_opt_tolerance is unknown or given twice; `,
				`the one option is plugin_opt_config_file, everything else is set in that file`}},
		},
		{
			name:     "configuration file named twice",
			listener: "plugin_opt_config_file {dir}/bouncer.toml",
			want:     [][]string{{`plugin_opt_config_file is unknown or given twice; `}},
		},
		{
			name:   "bouncer.toml missing",
			plugin: options + "{dir}/absent.toml",
			want: [][]string{{`{dir}/absent.toml: cannot be read: no such file or directory; `,
				`name an existing file, or create one with bouncerctl init`}},
		},
		{
			name:   "bouncer.toml unreadable",
			plugin: options + "{dir}/locked.toml",
			prepare: func(t *testing.T, b *broker.Broker) {
				harness.WriteFile(t, b, "locked.toml", strings.ReplaceAll(harness.SoundTOML, "{dir}", b.Dir), 0)
			},
			want: [][]string{{`{dir}/locked.toml: cannot be read: permission denied; `, `the broker's user must be able to read it`}},
		},
		{
			name:   "bouncer.toml a directory",
			plugin: options + "{dir}/state",
			want:   [][]string{{`{dir}/state: cannot be read: not a regular file; `}},
		},
		{
			name: "unknown key",
			was:  `tolerance = "5m"`, is: `tolerence = "5m"`,
			want: [][]string{{`{dir}/bouncer.toml:6: publish.tolerence: unknown key; did you mean publish.tolerance?`}},
		},
		{
			name: "unknown section",
			was:  `[publish]`, is: `[published]`,
			want: [][]string{{`{dir}/bouncer.toml:4: published: unknown section; did you mean publish?`}},
		},
		{
			name: "malformed value",
			was:  `tolerance = "5m"`, is: `tolerance = "5 minutes"`,
			want: [][]string{{`{dir}/bouncer.toml:6: publish.tolerance: "5 minutes" is not a duration; `,
				`write a number and a unit (ms, s, m, h), for example "5m"`}},
		},
		{
			name: "value of the wrong type",
			was:  `max_bytes = 65536`, is: `max_bytes = true`,
			want: [][]string{{`{dir}/bouncer.toml:7: publish.max_bytes: is true or false; `, `write an integer of bytes or a size such as "64KiB"`}},
		},
		{
			name: "syntax error",
			was:  `tolerance = "5m"`, is: `tolerance = 5m`,
			want: [][]string{{`{dir}/bouncer.toml:6: publish.tolerance: not valid TOML: `, `; correct the line (text, durations and paths stand in quotes, each key once)`}},
		},
		{
			name: "three mistakes",
			was:  "max_bytes = 65536\n\n[backend]", is: "max_bytes = 12\nurl = \"x\"\n[backend]\nconcurrency = 0",
			want: [][]string{
				{`{dir}/bouncer.toml:7: publish.max_bytes: 12 bytes is out of range; use 256 to 268435455`},
				{`{dir}/bouncer.toml:8: publish.url: unknown key; did you mean backend.url?`},
				{`{dir}/bouncer.toml:10: backend.concurrency: 0 is out of range; use 1 to 4096`},
			},
		},
		{
			name: "backend without a scheme",
			was:  `url = "http://127.0.0.1:9/device/{device_id}/data"`, is: `url = "localhost:5000/device/{device_id}/data"`,
			want: [][]string{{`{dir}/bouncer.toml:10: backend.url: "localhost:5000/device/{device_id}/data" does not begin with http:// or https://; `,
				`write it in full, for example "http://localhost:5000/device/{device_id}/data"`}},
		},
		{
			name: "backend with a password",
			was:  `http://127.0.0.1:9/`, is: `http://user:` + harness.BrokerPassword + `@127.0.0.1:9/`,
			want: [][]string{{`{dir}/bouncer.toml:10: backend.url: has a user name or password in it; `, `remove them and use backend.bearer_token_file`}},
		},
		{
			name: "secret missing",
			was:  `timeout = "5s"`, is: `bearer_token_file = "token"`,
			want: [][]string{{`{dir}/bouncer.toml:11: backend.bearer_token_file: "{dir}/token" cannot be read: no such file or directory; `}},
		},
		{
			name: "secret unreadable",
			was:  `timeout = "5s"`, is: `bearer_token_file = "token"`,
			prepare: func(t *testing.T, b *broker.Broker) { harness.WriteFile(t, b, "token", harness.BrokerPassword, 0) },
			want: [][]string{{`{dir}/bouncer.toml:11: backend.bearer_token_file: "{dir}/token" cannot be read: permission denied; `,
				`the broker's user must be able to read it`}},
		},
		{
			name: "secret readable by everyone",
			was:  `timeout = "5s"`, is: `bearer_token_file = "token"`,
			prepare: func(t *testing.T, b *broker.Broker) { harness.WriteFile(t, b, "token", harness.BrokerPassword, 0o644) },
			want: [][]string{{`{dir}/bouncer.toml:11: backend.bearer_token_file: "{dir}/token" can be read or changed by every user (mode 0644); `,
				`run: chmod o= "{dir}/token"`}},
		},
		{
			name: "database missing",
			prepare: func(t *testing.T, b *broker.Broker) {
				if err := os.Remove(b.Path("devices.db")); err != nil {
					t.Fatal(err)
				}
			},
			want: [][]string{{`{dir}/bouncer.toml:2: database: device database: `, `{dir}/devices.db: no such file or directory; `,
				`create it with "bouncerctl device add"`}},
		},
		{
			name:    "database unreadable",
			prepare: func(t *testing.T, b *broker.Broker) { harness.WriteFile(t, b, "devices.db", "", 0) },
			want: [][]string{{`{dir}/bouncer.toml:2: database: device database: {dir}/devices.db: `, `permission denied; `,
				`the broker's user must be able to read it and to search its directory`}},
		},
		{
			name: "database not SQLite",
			prepare: func(t *testing.T, b *broker.Broker) {
				harness.WriteFile(t, b, "devices.db", "device_id,shared_secret\nsensor_001,"+harness.BrokerPassword+"\n", 0o640)
			},
			want: [][]string{{`{dir}/bouncer.toml:2: database: device database: {dir}/devices.db: `, `file is not a database; `, `name another file, or restore this one from a backup`}},
		},
		{
			name:    "database without devices",
			prepare: func(t *testing.T, b *broker.Broker) { harness.WriteFile(t, b, "devices.db", "", 0o640) },
			want: [][]string{{`{dir}/bouncer.toml:2: database: device database: {dir}/devices.db: no devices table; `,
				`create it with "bouncerctl device add"`}},
		},
		{
			name: "database of a newer version",
			prepare: func(t *testing.T, b *broker.Broker) {
				if err := b.SQL("PRAGMA user_version = 99"); err != nil {
					t.Fatal(err)
				}
			},
			want: [][]string{{`{dir}/bouncer.toml:2: database: device database: {dir}/devices.db: made by a newer version of this program: database version 99, newest known 3; `,
				`upgrade this program, or use another database`}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(harness.SoundTOML, c.was, c.is, 1)
			if c.was != "" && text == harness.SoundTOML {
				t.Fatalf("nothing to change: %q is not in bouncer.toml", c.was)
			}
			o := broker.Options{BouncerTOML: text, ListenerConf: c.listener}
			if c.plugin != "" {
				path, err := broker.FindPlugin()
				if err != nil {
					t.Fatal(err)
				}
				o.WithoutPlugin, o.Plugin, o.Conf = true, path, c.plugin
			}
			b := harness.StartRefused(t, o, c.prepare)
			if n := b.Log().Count(0, ready); n > 0 {
				t.Errorf("the plugin said that it is ready")
			}
			said := b.Log().Find(0, broker.Contains("bouncer: "))
			if len(said) != len(c.want) {
				t.Fatalf("the plugin wrote %d lines, want %d:\n\t%s", len(said), len(c.want), strings.Join(said, "\n\t"))
			}
			for i, want := range c.want {
				for j, part := range want {
					if part = strings.ReplaceAll(part, "{dir}", b.Dir); j == 0 {
						part = "bouncer: " + part
					}
					if !strings.Contains(said[i], part) {
						t.Errorf("the plugin's line %d is\n\t%s\nwhich does not say\n\t%s", i+1, said[i], part)
					}
				}
			}
		})
	}
}

// The second plugin line is found out by the first one's instance, which is ready by then.
func TestRefusesSecondPluginLine(t *testing.T) {
	b := harness.StartRefused(t, broker.Options{
		BouncerTOML: harness.SoundTOML,
		Conf:        "plugin {plugin}\nplugin_opt_config_file {dir}/bouncer.toml",
	}, nil)
	if n := b.Log().Count(0, broker.Contains("bouncer: the plugin is loaded twice, at "+b.Path("mosquitto.conf")+":", "; remove one of the plugin lines")); n != 1 {
		t.Errorf("%d lines say that the plugin is loaded twice, want 1", n)
	}
}

// The broker loads plugins RTLD_GLOBAL: any other symbol could take the place of one of the broker's or another
// plugin's. And the library that is installed must not have the switches that the fault tests use.
func TestLibraryShowsThreeSymbols(t *testing.T) {
	const release = "../build/mosquitto_bouncer.so"
	text, err := os.ReadFile(release)
	if err != nil {
		t.Fatalf("the library as it is installed: %v; run make build", err)
	}
	library, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", release, err)
	}
	symbols, err := library.DynamicSymbols()
	if err != nil {
		t.Fatalf("%s: %v", release, err)
	}
	var defined []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF {
			defined = append(defined, s.Name)
		}
	}
	slices.Sort(defined)
	if want := []string{"mosquitto_plugin_cleanup", "mosquitto_plugin_init", "mosquitto_plugin_version"}; !slices.Equal(defined, want) {
		t.Errorf("%s exports %q, want %q", release, defined, want)
	}
	if bytes.Contains(text, []byte("injected fault")) {
		t.Errorf("%s was built with the tag faultinject; run make build", release)
	}
}
