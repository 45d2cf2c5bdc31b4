package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/check"
	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
)

// systemConf is Debian's configuration of the broker.
const systemConf = "/etc/mosquitto/mosquitto.conf"

// errFindings ends a check that has found an error.
var errFindings = errors.New("correct what is listed above")

func newCheck(configFile *string) *cobra.Command {
	var hosts []string
	var version string
	c := &cobra.Command{
		Use:   "check [CONFIG]",
		Short: "Look for mistakes in bouncer.toml and mosquitto.conf",
		Long: `Check the configuration before the broker is started with it. CONFIG is a
mosquitto.conf, which names its bouncer.toml, or only a bouncer.toml. Without it,
the bouncer.toml of --config is checked, with the mosquitto.conf next to it or
else ` + systemConf + `, if there is one.

Each finding is a line "FILE:LINE: what is wrong; what to do". An error keeps the
broker from starting, or devices or the gate from working; a warning may be
intended. Options of mosquitto.conf that do not concern the plugin are not checked.
Run it as root: only then can it check whether the broker's user can read the
files. It exits with 1 if there is an error.`,
		Example: `  bouncerctl check
  bouncerctl check /srv/bouncer/mosquitto.conf --host broker.example.org`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(c, "unexpected argument %q, one configuration at a time", args[1])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if version == "" {
				version = check.InstalledBroker()
			}
			if version != "" && !check.ValidVersion(version) {
				return usage(c, "--broker-version %q is not of the form 2.0.11", version)
			}
			broker, err := files.BrokerAccount()
			if err != nil {
				return err
			}
			toml, conf := *configFile, ""
			switch {
			case len(args) == 0:
				conf = nearbyConf(toml)
			case strings.HasSuffix(args[0], ".toml"):
				toml = args[0]
			default:
				conf = args[0]
				if !c.Flags().Changed("config") {
					toml = ""
				}
			}
			report := check.Run(toml, conf, check.Options{Now: time.Now(), Hosts: hosts, Version: version, Broker: broker,
				Plugin: installedPlugin(), Config: defaultConfig})
			return printReport(c.OutOrStdout(), report)
		},
	}
	c.Flags().StringArrayVar(&hosts, "host", nil, "a `name` or address of the broker that the certificate must be valid for; repeatable")
	c.Flags().StringVar(&version, "broker-version", "", "the broker's `version`, such as 2.0.11 (default: that of the one installed)")
	return c
}

// nearbyConf returns the mosquitto.conf next to a bouncer.toml, or Debian's; "" if there is neither.
func nearbyConf(toml string) string {
	for _, conf := range []string{filepath.Join(filepath.Dir(toml), mosquittoConf), systemConf} {
		if _, err := os.Stat(conf); !errors.Is(err, fs.ErrNotExist) {
			return conf
		}
	}
	return ""
}

func printReport(w io.Writer, r *check.Report) error {
	for _, f := range r.Findings {
		kind := "warning"
		if f.Error {
			kind = "error"
		}
		fmt.Fprintf(w, "%s: %s: %s\n", f.Where, kind, f.Text)
	}
	summary := "nothing wrong found"
	if len(r.Findings) > 0 {
		summary = output.Counted(int64(r.Errors()), "error") + ", " + output.Counted(int64(len(r.Findings)-r.Errors()), "warning")
	}
	fmt.Fprintf(w, "Checked %s: %s.\n", strings.Join(r.Files, ", "), summary)
	if r.Errors() > 0 {
		return errFindings
	}
	return nil
}
