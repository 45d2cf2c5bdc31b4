package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/textfile"
)

const defaultConfig = "/etc/mosquitto-bouncer/bouncer.toml"

// maxSecretBytes bounds a secret that is given rather than made.
const maxSecretBytes = 4096

// maxInputBytes bounds what is read whole: a secret, a request, a message.
const maxInputBytes = 1 << 20

func newDevice(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "device",
		Short: "Register devices, show, renew, disable and remove them",
		Long: `Manage the registry of devices. What is changed is in force within a second,
whether the broker runs or not.`,
		Example: `  bouncerctl device add sensor_001
  bouncerctl device list`,
	}
	needsCommand(c)
	c.AddCommand(
		newDeviceAdd(configFile),
		newDeviceImport(configFile),
		newDeviceList(configFile),
		newDeviceShow(configFile),
		newDeviceRotate(configFile),
		newDeviceRenew(configFile),
		newDevicePin(configFile),
		newDeviceUnpin(configFile),
		newDeviceRemove(configFile),
		newDeviceRelease(configFile),
		newDeviceChange(configFile, "disable", "Refuse a device's publishes for the time being",
			`Disconnect a device and refuse its publishes until it is enabled again. It may
still connect.`,
			func(s *registry.Store, ctx context.Context, id string) error { return s.SetDisabled(ctx, id, true) }, "Disabled %s."),
		newDeviceChange(configFile, "enable", "Accept a disabled device's publishes again",
			`Accept a disabled device's publishes again, with the secret it had.`,
			func(s *registry.Store, ctx context.Context, id string) error { return s.SetDisabled(ctx, id, false) }, "Enabled %s."),
	)
	return c
}

type addOptions struct {
	secretFile string
	out        string
	csr        string
	noCert     bool
	pin        bool
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
is the key. Of the file of --secret-file, a byte order mark at its beginning and one
line end, LF or CRLF, at its end are not part of the secret; UTF-16 is read too.
The CA is the one in pki/ beside the bouncer.toml. With --csr the
device has made its private key, which never leaves it.`,
		Example: `  bouncerctl device add sensor_001
  bouncerctl device add sensor_002 --out /media/usb/sensor_002
  bouncerctl device add sensor_003 --csr sensor_003.csr --pin
  bouncerctl device add sensor_004 --secret-file - --no-cert <secret.txt`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			id := args[0]
			if !registry.ValidID(id) {
				return usage(c, "%q is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -)", id)
			}
			if id == "." || id == ".." {
				return usage(c, "the device id %q would name a directory, in the backend's URL too; use another", id)
			}
			switch {
			case o.noCert && o.csr != "":
				return usage(c, "--no-cert and --csr exclude each other")
			case o.noCert && o.pin:
				return usage(c, "--pin needs a certificate; register the device and use bouncerctl device pin")
			case o.csr == "-" && o.secretFile == "-":
				return usage(c, "--csr and --secret-file cannot both read standard input")
			}
			return o.run(id, *configFile, c.InOrStdin(), c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "read the secret from `file`, - for standard input; one line end at its end is not part of it")
	c.Flags().StringVar(&o.out, "out", "", "the `directory` to make (default devices/ID beside the database)")
	c.Flags().StringVar(&o.csr, "csr", "", "certify the key of the certificate signing request in `file`, - for standard input, instead of making one")
	c.Flags().BoolVar(&o.pin, "pin", false, "accept the device with this certificate alone")
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
	if note := blanksNote(secret, inputName(o.secretFile)); note != "" {
		fmt.Fprintln(stdout, note)
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
	store, err := openStore(cfg, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if _, err := store.Get(ctx, id); err == nil {
		return deviceError(id, registry.ErrExists)
	} else if !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	m, err := newMaker(cfg, filepath.Dir(configFile), !o.noCert)
	if err != nil {
		return err
	}
	if o.csr != "" {
		if m.request, err = readFrom("--csr", o.csr, stdin); err != nil {
			return err
		}
	}
	b, cert, err := m.bundle(id, secret)
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
	registration := registry.Registration{ID: id, Secret: secret, CertificateExpires: cert.expires}
	if o.pin {
		registration.Pin = cert.fingerprint
	}
	if err := store.Register(ctx, registration); err != nil {
		return errors.Join(deviceError(id, err), c.undo())
	}
	fmt.Fprintf(stdout, "Registered %s. Its bundle is in %s:\n  %s\n", id, out, strings.Join(b.names(), "  "))
	return nil
}

// secret returns the device's HMAC key.
func (o *addOptions) secret(stdin io.Reader) ([]byte, error) {
	if o.secretFile == "" {
		return newSecret(), nil
	}
	content, err := readFrom("--secret-file", o.secretFile, stdin)
	if err != nil {
		return nil, err
	}
	return parseSecret(content, inputName(o.secretFile))
}

// newSecret makes a secret: 32 random bytes as hexadecimal digits.
func newSecret() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return hex.AppendEncode(nil, key)
}

// readFrom reads the text in the file that a flag names, - for standard input, without a byte order mark.
func readFrom(flag, name string, stdin io.Reader) ([]byte, error) {
	content, err := readBytes(flag, name, stdin)
	if err != nil {
		return nil, err
	}
	if content, err = textfile.Decode(content); err != nil {
		return nil, fmt.Errorf("%s: what is in %s %w", flag, inputName(name), err)
	}
	return content, nil
}

func inputName(name string) string {
	if name == "-" {
		return "standard input"
	}
	return name
}

// readBytes is readFrom for what need not be text.
func readBytes(flag, name string, stdin io.Reader) ([]byte, error) {
	source := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		defer f.Close()
		source = f
	}
	content, err := io.ReadAll(io.LimitReader(source, maxInputBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if len(content) > maxInputBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes; name the right file", flag, maxInputBytes)
	}
	return content, nil
}

// parseSecret returns the secret in a file, without the line end, LF or CRLF, behind it. All else is part of the secret, so
// what an editor does not show is refused: with it the secret would be one that no device has.
func parseSecret(content []byte, name string) ([]byte, error) {
	secret := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case secret == "":
		return nil, fmt.Errorf("the secret in %s is empty; put the secret there", name)
	case strings.TrimSpace(secret) == "":
		return nil, fmt.Errorf("the secret in %s is of blanks alone, which is no secret; put the secret there", name)
	case len(secret) > maxSecretBytes:
		return nil, fmt.Errorf("the secret in %s is longer than %d bytes; use a shorter one", name, maxSecretBytes)
	case !utf8.ValidString(secret) || strings.ContainsFunc(secret, unicode.IsControl):
		return nil, fmt.Errorf("the secret in %s is not one line of text; write its bytes as hexadecimal digits, and sign with those", name)
	}
	if strings.ContainsFunc(secret, invisible) {
		return nil, fmt.Errorf("the secret in %s has a character that is not shown (%s); write it again, by hand if need be", name, invisibleName(secret))
	}
	return []byte(secret), nil
}

// invisible tells whether c is a character that nothing shows, such as a byte order mark or a zero-width space, or that
// looks like a blank and is none, or the one that stands for what could not be read.
func invisible(c rune) bool {
	return c == unicode.ReplacementChar || c != ' ' && unicode.In(c, unicode.Cf, unicode.Z, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// blanksNote is what is said of a secret with blanks around it, which an editor does not show; "" of others. They are part
// of the secret, as docs/configuration.md has it.
func blanksNote(secret []byte, name string) string {
	if bytes.Equal(secret, bytes.TrimSpace(secret)) {
		return ""
	}
	return fmt.Sprintf("Note: the secret in %s begins or ends with a blank, which is part of it.", name)
}

// invisibleName names the first invisible character.
func invisibleName(text string) string {
	for _, c := range text {
		if invisible(c) {
			return fmt.Sprintf("%U", c)
		}
	}
	return ""
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
				_, err := fmt.Fprintf(c.OutOrStdout(), done+"\n", printable(args[0]))
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
	store, err := openStore(cfg, false)
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

// openStore opens the registry. If there is none, it is an error unless create.
func openStore(cfg *config.Config, create bool) (*registry.Store, error) {
	path := cfg.Database
	key, err := registryKey(cfg)
	if err != nil {
		return nil, err
	}
	_, err = os.Stat(path)
	if err == nil {
		return registry.OpenStore(path, registry.WithKey(key))
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
	return registry.OpenStore(path, registry.WithKey(key))
}

// registryKey is what the secrets are encrypted under; nil if they are not.
func registryKey(cfg *config.Config) (*registry.Key, error) {
	if cfg.Registry.Key == nil {
		return nil, nil
	}
	return registry.NewKey(cfg.Registry.Key)
}

// deviceError says what to do about the errors of the registry that one can do
// something about.
func deviceError(id string, err error) error {
	switch {
	case errors.Is(err, registry.ErrExists):
		return fmt.Errorf("device %q is already registered; remove it first, or use another id", id)
	case errors.Is(err, registry.ErrNotFound):
		return fmt.Errorf("device %q is not registered; see bouncerctl device list", id)
	case errors.Is(err, registry.ErrTooManySecrets):
		return fmt.Errorf("%w; wait until one ends (bouncerctl device show), or end all of them with --grace 0", err)
	}
	return err
}
