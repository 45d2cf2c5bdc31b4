package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
)

const defaultConfig = "/etc/mosquitto-bouncer/bouncer.toml"

// maxSecretBytes bounds a secret that is given rather than made.
const maxSecretBytes = 4096

func newDevice() *cobra.Command {
	var configFile string
	c := &cobra.Command{
		Use:   "device",
		Short: "Register devices, list, disable and remove them",
		Long: `Manage the registry of devices. What is changed is in force within a second,
whether the broker runs or not.`,
		Example: `  bouncerctl device add sensor_001
  bouncerctl device list`,
	}
	needsCommand(c)
	c.PersistentFlags().StringVar(&configFile, "config", defaultConfig, "the bouncer.toml `file`")
	c.AddCommand(
		newDeviceAdd(&configFile),
		newDeviceList(&configFile),
		newDeviceChange(&configFile, "remove", "Make a device unknown",
			`Make a device unknown: its publishes are refused, its secret is gone. Its
bundle is left where it is, and its certificate still lets it connect: once the
broker has been restarted, as a client like any other. To shut out a device that
was lost or stolen, disable it instead, or revoke its certificate.`,
			(*registry.Store).Remove, "Removed %s. Its certificate still connects; to shut out a lost device, disable it instead."),
		newDeviceChange(&configFile, "disable", "Refuse a device's publishes for the time being",
			`Refuse a device's publishes until it is enabled again. It may still connect.`,
			func(s *registry.Store, ctx context.Context, id string) error { return s.SetDisabled(ctx, id, true) }, "Disabled %s."),
		newDeviceChange(&configFile, "enable", "Accept a disabled device's publishes again",
			`Accept a disabled device's publishes again, with the secret it had.`,
			func(s *registry.Store, ctx context.Context, id string) error { return s.SetDisabled(ctx, id, false) }, "Enabled %s."),
	)
	return c
}

type addOptions struct {
	secretFile string
	out        string
	noCert     bool
}

func newDeviceAdd(configFile *string) *cobra.Command {
	var o addOptions
	c := &cobra.Command{
		Use:   "add ID",
		Short: "Register a device and make the bundle of files it needs",
		Long: `Register a device, and make a directory with what it needs: a secret, a key and
certificate, the CA's certificate, and a README that shows how to publish.

ID is 1 to 64 of A-Z a-z 0-9 . _ : - and becomes the certificate's common name.
The secret is 64 random hexadecimal digits unless one is given; the text itself
is the key. The CA is the one in pki/ beside the bouncer.toml.`,
		Example: `  bouncerctl device add sensor_001
  bouncerctl device add sensor_002 --out /media/usb/sensor_002
  bouncerctl device add sensor_003 --secret-file - --no-cert <secret.txt`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			id := args[0]
			if !registry.ValidID(id) {
				return usage(c, "%q is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -)", id)
			}
			if id == "." || id == ".." {
				return usage(c, "the device id %q would name a directory, in the backend's URL too; use another", id)
			}
			return o.run(id, *configFile, c.InOrStdin(), c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "read the secret from `file`, - for standard input; one newline at\nits end is not part of it")
	c.Flags().StringVar(&o.out, "out", "", "the `directory` to make (default devices/ID beside the database)")
	c.Flags().BoolVar(&o.noCert, "no-cert", false, "make no certificate: the device has one of another CA")
	return c
}

func (o *addOptions) run(id, configFile string, stdin io.Reader, stdout io.Writer) (err error) {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	secret, err := o.secret(stdin)
	if err != nil {
		return err
	}
	out := o.out
	if out == "" {
		out = filepath.Join(filepath.Dir(cfg.Database), "devices", id)
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}

	// Nothing is left half-made by Ctrl-C either.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	store, err := openStore(cfg.Database, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if _, err := store.Get(ctx, id); err == nil {
		return deviceError(id, registry.ErrExists)
	} else if !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	b, err := newBundle(id, secret, cfg, filepath.Dir(configFile), o.noCert)
	if err != nil {
		return err
	}
	var c creation
	if err := b.write(&c, out); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s already exists; move it away, or name another directory with --out", out)
		}
		return errors.Join(err, c.undo())
	}
	if err := store.Add(ctx, id, registry.Secret(secret)); err != nil {
		return errors.Join(deviceError(id, err), c.undo())
	}
	fmt.Fprintf(stdout, "Registered %s. Its bundle is in %s:\n  %s\n", id, out, strings.Join(b.names(), "  "))
	return nil
}

// secret returns the device's HMAC key.
func (o *addOptions) secret(stdin io.Reader) ([]byte, error) {
	if o.secretFile == "" {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, err
		}
		return []byte(hex.EncodeToString(key)), nil
	}
	source, name := stdin, "standard input"
	if o.secretFile != "-" {
		f, err := os.Open(o.secretFile)
		if err != nil {
			return nil, fmt.Errorf("--secret-file: %w", err)
		}
		defer f.Close()
		source, name = f, o.secretFile
	}
	content, err := io.ReadAll(io.LimitReader(source, maxSecretBytes+3))
	if err != nil {
		return nil, fmt.Errorf("--secret-file: %w", err)
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case secret == "":
		return nil, fmt.Errorf("the secret in %s is empty; put the secret there", name)
	case len(secret) > maxSecretBytes:
		return nil, fmt.Errorf("the secret in %s is longer than %d bytes; use a shorter one", name, maxSecretBytes)
	case !utf8.ValidString(secret) || strings.ContainsFunc(secret, unicode.IsControl):
		return nil, fmt.Errorf("the secret in %s is not one line of text; write its bytes as hexadecimal digits, and sign with those", name)
	}
	return []byte(secret), nil
}

func newDeviceList(configFile *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the registered devices",
		Long:  `List the registered devices in the order of their ids, without their secrets.`,
		Example: `  bouncerctl device list
  bouncerctl device list --json | jq -r '.[] | select(.disabled) | .id'`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			list := listTable
			if asJSON {
				list = listJSON
			}
			return withStore(*configFile, func(s *registry.Store) error {
				return list(c.Context(), s, c.OutOrStdout())
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return c
}

func listTable(ctx context.Context, store *registry.Store, w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tREGISTERED\tSTATE")
	for entry, err := range store.List(ctx) {
		if err != nil {
			return err
		}
		id, created, state := entry.ID, "-", "enabled"
		if !registry.ValidID(id) {
			id, state = fmt.Sprintf("%q", id), "invalid id"
		} else if entry.Disabled {
			state = "disabled"
		}
		if !entry.CreatedAt.IsZero() {
			created = entry.CreatedAt.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", id, created, state)
	}
	return table.Flush()
}

// listJSON prints one device a line, as they come: there may be a million.
func listJSON(ctx context.Context, store *registry.Store, w io.Writer) error {
	type device struct {
		ID        string     `json:"id"`
		CreatedAt *time.Time `json:"created_at"` // null if unknown
		Disabled  bool       `json:"disabled"`
	}
	separator := "["
	for entry, err := range store.List(ctx) {
		if err != nil {
			return err
		}
		d := device{ID: entry.ID, Disabled: entry.Disabled}
		if !entry.CreatedAt.IsZero() {
			created := entry.CreatedAt.UTC()
			d.CreatedAt = &created
		}
		line, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s\n%s", separator, line); err != nil {
			return err
		}
		separator = ","
	}
	if separator == "[" {
		_, err := fmt.Fprintln(w, "[]")
		return err
	}
	_, err := fmt.Fprintln(w, "\n]")
	return err
}

// newDeviceChange makes a command that changes one registered device.
func newDeviceChange(configFile *string, verb, short, long string, change func(*registry.Store, context.Context, string) error, done string) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " ID",
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  bouncerctl device %s sensor_001", verb),
		Args:    oneID,
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(*configFile, func(s *registry.Store) error {
				if err := change(s, c.Context(), args[0]); err != nil {
					return deviceError(args[0], err)
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), done+"\n", args[0])
				return err
			})
		},
	}
}

// withStore runs do on the registry that the configuration names, which must
// exist.
func withStore(configFile string, do func(*registry.Store) error) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	store, err := openStore(cfg.Database, false)
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

// openStore opens the registry. If there is none, it is an error unless create.
func openStore(path string, create bool) (*registry.Store, error) {
	_, err := os.Stat(path)
	if err == nil {
		return registry.OpenStore(path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !create {
		return nil, fmt.Errorf("there is no device database %s; register a device with bouncerctl device add, or correct database in bouncer.toml", path)
	}
	owner, err := brokerAccount()
	if err != nil {
		return nil, err
	}
	var c creation
	if err := c.file(path, nil, 0o640, owner); err != nil {
		return nil, fmt.Errorf("making the device database: %w; make its directory, or correct database in bouncer.toml", err)
	}
	return registry.OpenStore(path)
}

// deviceError says what to do about the errors of the registry that one can do
// something about.
func deviceError(id string, err error) error {
	switch {
	case errors.Is(err, registry.ErrExists):
		return fmt.Errorf("device %q is already registered; remove it first, or use another id", id)
	case errors.Is(err, registry.ErrNotFound):
		return fmt.Errorf("device %q is not registered; see bouncerctl device list", id)
	}
	return err
}
