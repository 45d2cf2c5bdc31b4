package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/registry"
)

// nearlyFull is from which part on check warns of the room that is taken.
const nearlyFull = 0.9

// fullest returns the room that the letters take, and the device that takes the most of it.
func fullest(ctx context.Context, s *deadletter.Store) (u deadletter.Usage, d deadletter.DeviceUsage, err error) {
	if u, err = s.Usage(ctx); err != nil {
		return u, d, err
	}
	largest, err := s.Largest(ctx, 1)
	if len(largest) > 0 {
		d = largest[0]
	}
	return u, d, err
}

// printLetterRoom prints the footer of the list: the room that the letters take.
func printLetterRoom(ctx context.Context, configFile string, s *deadletter.Store, w io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	u, d, err := fullest(ctx, s)
	if err != nil {
		return err
	}
	limits := cfg.DeadLetters
	_, err = fmt.Fprintf(w, "Room: %d of %d bytes.", u.Bytes, limits.MaxBytes)
	if err == nil && d.Device != "" {
		_, err = fmt.Fprintf(w, " The most of a device: %s, %d of %d bytes.", quoted(d.Device), d.Bytes, share(limits))
	}
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	return err
}

// share is how many bytes the letters of one device may take.
func share(l config.DeadLetters) int64 { return int64(l.DeviceShare * float64(l.MaxBytes)) }

// checkLetters warns where there is nearly no room for another dead letter.
func (k *checker) checkLetters() {
	s, err := deadletter.OpenExisting(filepath.Join(k.toml.StateDir, deadletter.FileName))
	if err != nil {
		return // there are none yet; whether the directory can be used is looked at elsewhere
	}
	defer s.Close()
	u, d, err := fullest(context.Background(), s)
	if err != nil {
		return
	}
	limits := k.toml.DeadLetters
	if float64(u.Bytes) > nearlyFull*float64(limits.MaxBytes) {
		k.warn(k.set("dead_letters.max_bytes"), "the dead letters take %d of %d bytes; when they are full, devices with another one wait: requeue or drop some with bouncerctl dead", u.Bytes, limits.MaxBytes)
	}
	if float64(d.Bytes) > nearlyFull*float64(share(limits)) {
		k.warn(k.set("dead_letters.device_share"), "the dead letters of %s take %d of %d bytes; when that is full, its messages wait: requeue or drop some with bouncerctl dead", quoted(d.Device), d.Bytes, share(limits))
	}
}

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
	case !registry.ValidID(s.device):
		return deadletter.Filter{}, noDeviceID(c, s.device)
	}
	return deadletter.Filter{Device: s.device}, nil
}

// changeLetters runs change and says how many letters it changed, also if it then failed.
func changeLetters(configFile string, w io.Writer, done string, change func(*deadletter.Store) (int64, error)) error {
	return withLetters(configFile, func(s *deadletter.Store) error {
		n, err := change(s)
		if err == nil || n > 0 {
			_, printErr := fmt.Fprintf(w, "%s %s.\n", done, counted(n, "letter"))
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
