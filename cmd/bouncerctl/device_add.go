package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/registry"
)

const defaultConfig = "/etc/mosquitto-bouncer/bouncer.toml"

type addOptions struct {
	secretFile string
	keyFile    string
	signsTLS   bool // the certificate's key signs
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

A device may sign with a private key that never leaves it, in place of a secret: then
who copies the registry cannot speak for it. --key names the file of its public half:
Ed25519 or ECDSA on P-256, in PEM. With --sign-with-certificate the key of the
certificate signs; with --csr too, one key in a secure element does everything. To
such a device this version can send no commands.

ID is 1 to 64 of A-Z a-z 0-9 . _ : - and becomes the certificate's common name.
The secret is 64 random hexadecimal digits unless one is given; the text itself
is the key. In the file of --secret-file, a byte order mark at the beginning and one
line end, LF or CRLF, at the end are not part of the secret. The file may be UTF-16.
The CA is the one in pki/ next to bouncer.toml. With --csr the device makes its own
private key, which never leaves it.`,
		Example: `  bouncerctl device add sensor_001
  bouncerctl device add sensor_002 --out /media/usb/sensor_002
  bouncerctl device add sensor_003 --csr sensor_003.csr --pin
  bouncerctl device add sensor_004 --secret-file - --no-cert <secret.txt
  bouncerctl device add sensor_005 --key sensor_005.pub
  bouncerctl device add sensor_006 --csr sensor_006.csr --sign-with-certificate`,
		Args: oneID,
		RunE: func(c *cobra.Command, args []string) error {
			id := args[0]
			if !deviceid.Valid(id) {
				return noDeviceID(c, id)
			}
			if id == "." || id == ".." {
				return usage(c, "the device id %q would name a directory, in the backend's URL too; use another", id)
			}
			switch {
			case o.noCert && o.csr != "":
				return usage(c, "--no-cert and --csr exclude each other")
			case o.noCert && o.pin:
				return usage(c, "--pin needs a certificate; register the device and use bouncerctl device pin")
			case o.keyFile != "" && o.secretFile != "" || o.signsTLS && (o.keyFile != "" || o.secretFile != ""):
				return usage(c, "--secret-file, --key and --sign-with-certificate exclude each other")
			case o.signsTLS && o.noCert:
				return usage(c, "--sign-with-certificate needs a certificate; name the key of one of another CA with --key")
			case o.csr == "-" && o.keyFile == "-":
				return usage(c, "--csr and --key cannot both read standard input")
			case o.csr == "-" && o.secretFile == "-":
				return usage(c, "--csr and --secret-file cannot both read standard input")
			}
			return o.run(id, *configFile, c.InOrStdin(), c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "read the secret from `file`, - for standard input; a line end at its end is not part of it")
	c.Flags().StringVar(&o.keyFile, "key", "", "the device signs with the private half of the public key in `file`, - for standard input, in place of a secret")
	c.Flags().BoolVar(&o.signsTLS, "sign-with-certificate", false, "the device signs with the key of its certificate, in place of a secret")
	c.Flags().StringVar(&o.out, "out", "", "the `directory` to make (default devices/ID next to the database)")
	c.Flags().StringVar(&o.csr, "csr", "", "certify the key of the certificate signing request in `file`, - for standard input, instead of making one")
	c.Flags().BoolVar(&o.pin, "pin", false, "accept the device only with this certificate")
	c.Flags().BoolVar(&o.noCert, "no-cert", false, "make no certificate: the device has one of another CA")
	return c
}

func (o *addOptions) run(id, configFile string, stdin io.Reader, stdout io.Writer) (err error) {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	signs, err := o.credential(stdin)
	if err != nil {
		return err
	}
	if note := blanksNote(signs.Secret, inputName(o.secretFile)); note != "" {
		fmt.Fprintln(stdout, note)
	}
	out, err := bundleDir(cfg, o.out, id)
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
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
		if m.Request, err = readFrom("--csr", o.csr, stdin); err != nil {
			return err
		}
	}
	b, cert, key, err := m.New(id, signs)
	if err != nil {
		return err
	}
	registration := registry.Registration{ID: id, Secret: signs.Secret, Key: key, KeyOfCertificate: o.signsTLS, CertificateExpires: cert.Expires}
	if o.pin {
		registration.Pin = cert.Fingerprint
	}
	if err := writeBundle(id, b, out, func() error { return store.Register(ctx, registration) }); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Registered %s. Its bundle is in %s:\n  %s\n", id, out, strings.Join(b.Names(), "  "))
	if key != nil {
		fmt.Fprintf(stdout, "It signs with %s; the fingerprint of its public key is\n  %s\n", key.Algorithm(), key.Fingerprint())
		if len(cfg.Command.Keys.Valid(key.Algorithm(), time.Now())) == 0 {
			fmt.Fprintf(stdout, "The gateway has no key to sign commands to it with; %s%s\n", makesKey(cfg.Command.Keys, key.Algorithm()), elsewhere(configFile))
		}
	}
	return nil
}

// credential returns what the device signs with.
func (o *addOptions) credential(stdin io.Reader) (c bundle.Credential, err error) {
	switch {
	case o.signsTLS:
		c.Certificate = true
	case o.keyFile != "":
		c.Key, err = readPublicKey(o.keyFile, stdin)
	default:
		c.Secret, err = o.secret(stdin)
	}
	return c, err
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
