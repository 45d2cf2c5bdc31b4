package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/pki"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/textfile"
)

func newDevicePin(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "pin ID CERTIFICATE...",
		Short: "Accept a device only with certain certificates",
		Long: `Accept a device only when it uses one of these certificates, even if its CA has
signed others in its name. CERTIFICATE is a PEM file, or the SHA-256 fingerprint
in hexadecimal, as "openssl x509 -fingerprint -sha256" shows it. Certificates that
were pinned before are replaced. With another certificate a publish is refused as
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
				_, err := fmt.Fprintf(c.OutOrStdout(), "Pinned %d for %s.\n", len(pins), output.Printable(args[0]))
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
		`Accept a device with any certificate that has its id as common name and that the
broker accepts.`, func(s *registry.Store, ctx context.Context, id string) error { return s.Pin(ctx, id) }, "Unpinned %s: any certificate with its id as common name is accepted.")
}
