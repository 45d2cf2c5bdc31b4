package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/textfile"
)

// maxGrace bounds how long a replaced secret is accepted.
const maxGrace = 365 * 24 * time.Hour

type rotateOptions struct {
	add   addOptions // for the secret and where it goes
	grace time.Duration
	now   bool // as with a grace of 0
}

func newDeviceRotate(configFile *string) *cobra.Command {
	var o rotateOptions
	c := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give a device a new secret, beside the old one for a while",
		Long: `Give a device a new secret and make a directory with it. The old secret stays
valid for the time of --grace and then ends by itself, so that the device can be
given the new one meanwhile. Commands to the device are signed with the old one
until a message that it has signed with the new one is accepted, or the time is
over. With --now, for a secret that was stolen, every old secret ends at once, and
nothing is signed with one any more; --grace 0 is the same.

Of the file of --secret-file, a byte order mark at its beginning and one line end,
LF or CRLF, at its end are not part of the secret. UTF-16 is read too.`,
		Example: `  bouncerctl device rotate sensor_001
  bouncerctl device rotate sensor_001 --now --out /media/usb/sensor_001`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			if o.now && c.Flags().Changed("grace") {
				return usage(c, "--now and --grace exclude each other")
			}
			if o.now {
				o.grace = 0
			}
			if o.grace < 0 || o.grace > maxGrace {
				return usage(c, "--grace %s is not 0 to 365 days", o.grace)
			}
			return o.run(args[0], *configFile, c.InOrStdin(), c.OutOrStdout())
		},
	}
	o.grace = 24 * time.Hour
	c.Flags().Var((*span)(&o.grace), "grace", "how long the old secret is accepted as well, such as 90m, 24h or 7d")
	c.Flags().BoolVar(&o.now, "now", false, "end every old secret at once: for one that was stolen")
	c.Flags().StringVar(&o.add.secretFile, "secret-file", "", "read the new secret from `file`, - for standard input; one line end at its end is not part of it")
	c.Flags().StringVar(&o.add.out, "out", "", "the `directory` to make (default devices/ID and the time, beside the database)")
	return c
}

func (o *rotateOptions) run(id, configFile string, stdin io.Reader, stdout io.Writer) error {
	secret, err := o.add.secret(stdin)
	if err != nil {
		return err
	}
	var ends time.Time
	said := "The old ones are no longer accepted, and nothing is signed with them."
	if o.grace > 0 {
		ends = time.Now().Add(o.grace + time.Second - time.Nanosecond).Truncate(time.Second)
		said = fmt.Sprintf("The old one is accepted as well until %s. Commands are signed with it until then, or until a message signed with the new one is accepted.",
			ends.UTC().Format(time.RFC3339))
	}
	out, err := hand(id, configFile, o.add.out, false, nil, secret, ends, func(ctx context.Context, s *registry.Store, _ certificate) error {
		return s.Rotate(ctx, id, secret, ends)
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "Made a new secret for %s. It is in %s:\n  secret  README\n%s\n", id, out, said)
	return err
}

func newDeviceRenew(configFile *string) *cobra.Command {
	var out, csr string
	c := &cobra.Command{
		Use:   "renew ID",
		Short: "Make a new certificate for a device",
		Long: `Make a new key and certificate for a device, of the CA in pki/ beside the
bouncer.toml, and a directory with them. The old certificate is valid until it
expires. If certificates are pinned for the device, the new one is beside them.`,
		Example: `  bouncerctl device renew sensor_001
  bouncerctl device renew sensor_001 --csr sensor_001.csr --out /media/usb/sensor_001`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			var request []byte
			if csr != "" {
				var err error
				if request, err = readFrom("--csr", csr, c.InOrStdin()); err != nil {
					return err
				}
			}
			id, expires := args[0], time.Time{}
			made, err := hand(id, *configFile, out, true, request, nil, time.Time{}, func(ctx context.Context, s *registry.Store, cert certificate) error {
				expires = cert.expires
				return s.SetCertificate(ctx, id, cert.expires, cert.fingerprint)
			})
			if err != nil {
				return err
			}
			names := "ca.crt  device.crt  device.key  README"
			if request != nil {
				names = "ca.crt  device.crt  README"
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "Made a certificate for %s, valid until %s. It is in %s:\n  %s\n",
				id, expires.UTC().Format(time.DateOnly), made, names)
			return err
		},
	}
	c.Flags().StringVar(&csr, "csr", "", "certify the key of the certificate signing request in `file`, - for standard input, instead of making one")
	c.Flags().StringVar(&out, "out", "", "the `directory` to make (default devices/ID and the time, beside the database)")
	return c
}

// hand makes a directory with something new for a device, and changes the registry; both or neither. It returns the
// directory.
func hand(id, configFile, out string, certify bool, request, secret []byte, ends time.Time,
	change func(context.Context, *registry.Store, certificate) error) (string, error) {
	if !registry.ValidID(id) { // other programs may have registered what is none; the directory would be anywhere
		return "", fmt.Errorf("%q is not a device id (1 to 64 of A-Z a-z 0-9 . _ : -); remove it, and register the device by another", id)
	}
	cfg, err := config.Load(configFile)
	if err != nil {
		return "", err
	}
	if out == "" {
		out = filepath.Join(filepath.Dir(cfg.Database), "devices", id+"."+time.Now().UTC().Format("20060102T150405.000Z"))
	}
	if out, err = filepath.Abs(out); err != nil {
		return "", err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	store, err := openStore(cfg, false)
	if err != nil {
		return "", err
	}
	defer func() { _ = store.Close() }()
	if _, err := store.Get(ctx, id); err != nil {
		return "", deviceError(id, err)
	}
	m, err := newMaker(cfg, filepath.Dir(configFile), certify)
	if err != nil {
		return "", err
	}
	m.request = request
	b, cert, err := m.update(id, secret, ends)
	if err != nil {
		return "", err
	}
	var c creation
	if err := b.write(&c, out); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s already exists; move it away, or name another directory with --out", out)
		}
		return "", errors.Join(err, c.undo())
	}
	if err := change(ctx, store, cert); err != nil {
		return "", errors.Join(deviceError(id, err), c.undo())
	}
	return out, nil
}

func newDevicePin(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "pin ID CERTIFICATE...",
		Short: "Accept a device with certain certificates alone",
		Long: `Accept a device only when it comes with one of these certificates, whatever else
its CA has signed in its name. CERTIFICATE is a PEM file, or the SHA-256
fingerprint in hexadecimal, as "openssl x509 -fingerprint -sha256" shows it. What
was pinned before is replaced. With another certificate a publish is refused as
no_tls_identity.`,
		Example: `  bouncerctl device pin sensor_001 /etc/mosquitto-bouncer/devices/sensor_001/device.crt`,
		Args: func(c *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return usage(c, "no device id given")
			case 1:
				return usage(c, "no certificate given; to accept any again, use bouncerctl device unpin")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var pins []registry.Fingerprint
			for _, arg := range args[1:] {
				f, err := registry.ParseFingerprint(arg)
				if err != nil {
					content, err := textfile.ReadFile(arg)
					if err != nil {
						return fmt.Errorf("%w; name a certificate, or its SHA-256 fingerprint (64 hexadecimal digits)", err)
					}
					sum := f
					if _, sum, err = inspect(arg, content); err != nil {
						return err
					}
					f = sum
				}
				pins = append(pins, f)
			}
			return withStore(*configFile, func(s *registry.Store) error {
				if err := s.Pin(c.Context(), args[0], pins...); err != nil {
					return deviceError(args[0], err)
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "Pinned %d for %s.\n", len(pins), printable(args[0]))
				return err
			})
		},
	}
}

func inspect(name string, content []byte) (time.Time, registry.Fingerprint, error) {
	expires, sum, err := pki.Inspect(content)
	if err != nil {
		return time.Time{}, sum, fmt.Errorf("%s: %w", name, err)
	}
	return expires, sum, nil
}

func newDeviceUnpin(configFile *string) *cobra.Command {
	return newDeviceChange(configFile, "unpin", "Accept a device with any certificate of its CA again",
		`Accept a device with any certificate that bears its id and that the broker
accepts.`, func(s *registry.Store, ctx context.Context, id string) error { return s.Pin(ctx, id) }, "Unpinned %s: it may come with any certificate that bears its id.")
}

// A span is a flag for a duration, in days too: "30d".
type span time.Duration

func (s *span) String() string {
	d := time.Duration(*s)
	if d > 0 && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (s *span) Type() string { return "duration" }

func (s *span) Set(text string) error {
	if text == "0" {
		*s = 0
		return nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if _, err := fmt.Sscanf(days+" ", "%d ", &n); err == nil && n >= 0 && n <= 100_000 && fmt.Sprint(n) == days {
			*s = span(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return fmt.Errorf("not a duration; write a number and a unit (s, m, h, d), for example 24h")
	}
	*s = span(d)
	return nil
}
