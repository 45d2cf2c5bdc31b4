// Bouncerctl is the operator's command line of mosquitto-bouncer: it prepares a
// broker and manages the devices, while the broker runs or before.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/version"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
	exitUnasked = 3 // health only
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "bouncerctl: %v\n", err)
	if _, usage := errors.AsType[*usageError](err); usage {
		return exitUsage
	}
	if _, found := errors.AsType[*unasked](err); found {
		return exitUnasked
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bouncerctl",
		Short: "Prepare and manage a broker with mosquitto-bouncer",
		Long: `Bouncerctl prepares a Mosquitto broker with mosquitto-bouncer and manages its
devices. Changes take effect within a second, without a restart of the broker.

The exit code is 0 on success, 1 on failure, 2 for a wrong call.`,
		Example: `  bouncerctl init --dir /srv/bouncer --host broker.example.org
  bouncerctl device add sensor_001 --config /srv/bouncer/bouncer.toml`,
		Version:       version.Number,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	needsCommand(root)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80"))
	root.SetVersionTemplate("bouncerctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, "%v", err) })
	var configFile string
	root.PersistentFlags().StringVar(&configFile, "config", defaultConfig, "the bouncer.toml `file`")
	root.AddCommand(newInit(), newDevice(&configFile), newRegistry(&configFile), newCommandKey(&configFile), newQueue(&configFile), newDead(&configFile), newRetained(&configFile),
		newCheck(&configFile), newSign(&configFile), newVerify(&configFile), newTop(&configFile), newHealth(&configFile), newManual())
	root.InitDefaultCompletionCmd()
	completeDevices(root, &configFile)
	return root
}

// maxCompletions is how many device ids a shell is offered.
const maxCompletions = 200

// completeDevices has shells complete device ids where a command takes one.
func completeDevices(c *cobra.Command, configFile *string) {
	for _, sub := range c.Commands() {
		completeDevices(sub, configFile)
	}
	if !strings.Contains(c.Use, " ID") || c.Name() == "add" || c.ValidArgsFunction != nil {
		return
	}
	c.ValidArgsFunction = func(c *cobra.Command, args []string, typed string) (ids []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		_ = withStore(*configFile, func(s *registry.Store) error {
			ctx, stop := context.WithTimeout(context.Background(), time.Second)
			defer stop()
			for e, err := range s.List(ctx) {
				if err != nil || len(ids) == maxCompletions {
					return err
				}
				if strings.HasPrefix(e.ID, typed) && e.IDType == "" && deviceid.Valid(e.ID) {
					ids = append(ids, e.ID)
				}
			}
			return nil
		})
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

// usageError is a wrong call rather than a failure.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(c *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...) + fmt.Sprintf("; see %s --help", c.CommandPath())}
}

// needsCommand makes c refuse a call that names none of its commands.
func needsCommand(c *cobra.Command) {
	c.SuggestionsMinimumDistance = 2
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(c, "no command given")
		}
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return usage(c, "unknown command %q, did you mean %q?", args[0], near[0])
		}
		return usage(c, "unknown command %q", args[0])
	}
	c.RunE = func(*cobra.Command, []string) error { return nil } // not reached: Args refuses every call
}

// noArguments refuses arguments other than flags.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(c, "unexpected argument %q", args[0])
	}
	return nil
}

// oneID wants a device id and nothing else.
func oneID(c *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usage(c, "no device id given")
	case 1:
		return nil
	}
	return usage(c, "unexpected argument %q, one device at a time", args[1])
}

// idRule says what a device id is made of.
const idRule = " (" + deviceid.Rule + ")"

// noDeviceID refuses what is not a device id.
func noDeviceID(c *cobra.Command, id string) error {
	return usage(c, "%q is not a device id%s", id, idRule)
}
