package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
)

func newDeviceRenew(configFile *string) *cobra.Command {
	var out, csr string
	c := &cobra.Command{
		Use:   "renew ID",
		Short: "Make a new certificate for a device",
		Long: `Make a new key and certificate for a device, of the CA in pki/ next to
bouncer.toml, and a directory with them. The old certificate is valid until it
expires. If certificates are pinned for the device, the new one is added to them. If
the device signs with the key of its certificate, it signs with the new one from now
on; messages that are signed with the old one are accepted until the old certificate
expires.`,
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
			made, names, err := hand(id, *configFile, out, true, request, nil, time.Time{}, func(ctx context.Context, s *registry.Store, cert bundle.Certificate) error {
				expires = cert.Expires
				return s.RenewCertificate(ctx, id, cert.Expires, cert.Fingerprint, func() (*publickey.Key, error) { return publickey.Of(cert.PublicKey) })
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "Made a certificate for %s, valid until %s. It is in %s:\n  %s\n",
				id, expires.UTC().Format(time.DateOnly), made, strings.Join(names, "  "))
			return err
		},
	}
	c.Flags().StringVar(&csr, "csr", "", "certify the key of the certificate signing request in `file`, - for standard input, instead of making one")
	c.Flags().StringVar(&out, "out", "", "the `directory` to make (default devices/ID and the time, next to the database)")
	return c
}
