package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
)

type importOptions struct {
	out    string
	noCert bool
}

func newDeviceImport(configFile *string) *cobra.Command {
	var o importOptions
	c := &cobra.Command{
		Use:   "import FILE.csv",
		Short: "Register many devices at once, all or none",
		Long: `Register the devices in a file of comma-separated values, - for standard input:
all of them, or none if anything is wrong with one. The first line names the
columns: id, or device_id; and secret, or shared_secret. If the secret is left out
or empty, a secret is made. A device that signs with a private key has its public
key in a column key, or public_key: the base64 between the lines of its PEM file, on
one line. Semicolons or tabs may separate the columns. A byte
order mark is ignored, and so is the line that Windows PowerShell's Export-Csv
writes before the columns. The file may be UTF-16.

With --out, it makes a bundle for each device as "device add" does, in a
directory named after the device. Without --out, each line must have a secret
or a key.`,
		Example: `  bouncerctl device import fleet.csv
  printf 'id\nsensor_001\nsensor_002\n' | bouncerctl device import - --out bundles`,
		Args: func(c *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return usage(c, "no file given; - is standard input")
			case 1:
				return nil
			}
			return usage(c, "unexpected argument %q, one file at a time", args[1])
		},
		RunE: func(c *cobra.Command, args []string) error {
			if o.noCert && o.out == "" {
				return usage(c, "--no-cert is for bundles; name a directory for them with --out")
			}
			return o.run(args[0], *configFile, c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&o.out, "out", "", "make a bundle for each device in this `directory`, which must not exist")
	c.Flags().BoolVar(&o.noCert, "no-cert", false, "make no certificates for the bundles")
	return c
}

func (o *importOptions) run(name, configFile string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	devices, notes, err := readCSV(name, stdin, o.out != "")
	if err != nil {
		return err
	}
	for _, note := range notes {
		fmt.Fprintln(stdout, note)
	}
	ctx, stop := interruptible()
	defer stop()
	store, err := openStore(cfg, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	if err := unknownYet(ctx, store, devices); err != nil {
		return importError(err)
	}
	p := newProgress(stderr, len(devices))
	if o.out != "" {
		if err := files.Trusted(filepath.Dir(o.out), nil); err != nil {
			return err
		}
		if err := os.Mkdir(o.out, 0o700); err != nil {
			if errors.Is(err, fs.ErrExist) {
				err = outExists(o.out)
			}
			return err
		}
	}
	n, err := o.register(ctx, store, cfg, filepath.Dir(configFile), devices, p)
	if err != nil {
		if o.out != "" {
			err = errors.Join(err, os.RemoveAll(o.out)) // it is ours
		}
		return importError(err)
	}
	said := fmt.Sprintf("Registered %s.", output.Counted(int64(n), "device"))
	if o.out != "" {
		said += fmt.Sprintf(" The bundles are in %s.", o.out)
	}
	_, err = fmt.Fprintln(stdout, said)
	return err
}

// register makes the bundles, if there are to be any, and registers the devices.
func (o *importOptions) register(ctx context.Context, store *registry.Store, cfg *config.Config, configDir string, devices []registry.Registration, p *progress) (int, error) {
	defer p.stop()
	if o.out != "" {
		if err := o.makeBundles(ctx, cfg, configDir, devices, p); err != nil {
			return 0, err
		}
	}
	return store.Import(ctx, registrations(ctx, devices, p))
}

// unknownYet refuses devices that are registered: the registration would, but only after their bundles were made.
func unknownYet(ctx context.Context, store *registry.Store, devices []registry.Registration) error {
	wanted := make(map[string]struct{}, len(devices))
	for i := range devices {
		wanted[devices[i].ID] = struct{}{}
	}
	for e, err := range store.List(ctx) {
		if err != nil {
			return err
		}
		if _, twice := wanted[e.ID]; twice && e.IDType == "" {
			return fmt.Errorf("device %q: %w", e.ID, registry.ErrExists)
		}
	}
	return nil
}

func importError(err error) error {
	if errors.Is(err, registry.ErrExists) {
		return fmt.Errorf("nothing was registered: %w; remove it from the file, or from the registry", err)
	}
	return fmt.Errorf("nothing was registered: %w", err)
}

// makeBundles makes a directory for each device, and notes its certificate.
func (o *importOptions) makeBundles(ctx context.Context, cfg *config.Config, configDir string, devices []registry.Registration, p *progress) error {
	m, err := newMaker(cfg, configDir, !o.noCert)
	if err != nil {
		return err
	}
	p.next("bundles")
	group, grouped := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.NumCPU()) // half of them are waiting for the disk
	for i := range devices {
		if grouped.Err() != nil {
			break
		}
		group.Go(func() error {
			d := &devices[i]
			b, cert, _, err := m.New(d.ID, bundle.Credential{Secret: d.Secret, Key: d.Key})
			if err != nil {
				return err
			}
			d.CertificateExpires = cert.Expires
			// The files are not synced to the disk: for each that would take longer than all else together.
			if err := b.Write(new(files.Creation), filepath.Join(o.out, d.ID)); err != nil {
				return err
			}
			p.add()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func registrations(ctx context.Context, devices []registry.Registration, p *progress) iter.Seq2[registry.Registration, error] {
	return func(yield func(registry.Registration, error) bool) {
		p.next("devices")
		for _, d := range devices {
			if err := ctx.Err(); err != nil {
				yield(d, err)
				return
			}
			if !yield(d, nil) {
				return
			}
			p.add()
		}
	}
}
