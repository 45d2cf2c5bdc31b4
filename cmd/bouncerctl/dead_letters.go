package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/deviceid"
)

// A selection is the letters that a command is to change.
type selection struct {
	device string
	all    bool
}

// flags adds those that select.
func (s *selection) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.device, "device", "", "all letters of the device `ID`")
	c.Flags().BoolVar(&s.all, "all", false, "all letters")
}

// filter wants exactly one way to select letters.
func (s *selection) filter(c *cobra.Command, args []string) (deadletter.Filter, error) {
	var ways int
	for _, used := range []bool{len(args) > 0, c.Flags().Changed("device"), s.all} {
		if used {
			ways++
		}
	}
	switch {
	case ways == 0:
		return deadletter.Filter{}, usage(c, "no letter given; name their numbers, --device ID or --all")
	case ways > 1:
		return deadletter.Filter{}, usage(c, "numbers, --device and --all exclude each other")
	case s.all:
		return deadletter.Filter{}, nil
	case len(args) > 0:
		ids, err := letterIDs(c, args)
		return deadletter.Filter{IDs: ids}, err
	case !deviceid.Valid(s.device):
		return deadletter.Filter{}, noDeviceID(c, s.device)
	}
	return deadletter.Filter{Device: s.device}, nil
}

// changeLetters runs change and says how many letters it changed, also if it then failed.
func changeLetters(configFile string, w io.Writer, done string, change func(*deadletter.Store) (int64, error)) error {
	return withLetters(configFile, func(s *deadletter.Store) error {
		n, err := change(s)
		if err == nil || n > 0 {
			_, printErr := fmt.Fprintf(w, "%s %s.\n", done, output.Counted(n, "letter"))
			err = errors.Join(err, printErr)
		}
		return letterError(err)
	})
}

// withLetters runs do on the dead letters in the state directory that the configuration names.
func withLetters(configFile string, do func(*deadletter.Store) error) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	store, err := deadletter.OpenExisting(filepath.Join(cfg.StateDir, deadletter.FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there are no dead letters in %s; the broker makes %s when it starts, so correct state_dir in bouncer.toml if it has run",
			cfg.StateDir, deadletter.FileName)
	}
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

// letterIDs reads the numbers of letters, at least one.
func letterIDs(c *cobra.Command, args []string) ([]int64, error) {
	if len(args) == 0 {
		return nil, usage(c, "no letter given")
	}
	ids := make([]int64, len(args))
	for i, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id < 1 {
			return nil, usage(c, "%q is not the number of a letter", arg)
		}
		ids[i] = id
	}
	return ids, nil
}

// letterError says what to do about a letter that does not exist.
func letterError(err error) error {
	if errors.Is(err, deadletter.ErrNotFound) {
		return fmt.Errorf("%w; see bouncerctl dead list", err)
	}
	return err
}

func state(l deadletter.Letter) string {
	if l.RequeuedAt.IsZero() {
		return "dead"
	}
	return "requeued"
}

// status is the status of a response, if there was one.
func status(code int) string {
	if code == 0 {
		return "-"
	}
	return strconv.Itoa(code)
}
