package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/publickey"
)

const keysSetting = "command.keys_file"

func newCommandKey(configFile *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "command-key",
		Short: "Manage the gateway's own keys, which sign commands to devices",
		Long: `Manage the private keys that the gateway signs commands with, to devices that have a
public key. A device with a secret needs none of them. There is one key of each
algorithm, Ed25519 and ECDSA P-256: a device gets commands signed with the algorithm
that it signs with itself. A device knows the public halves from its bundle.`,
		Example: `  bouncerctl command-key list
  bouncerctl command-key rotate --overlap 60d
  bouncerctl command-key export --algorithm p256`,
	}
	needsCommand(c)
	c.AddCommand(newCommandKeyMake(configFile), newCommandKeyRotate(configFile), newCommandKeyList(configFile), newCommandKeyExport(configFile))
	return c
}

// algorithmNames are the values of --algorithm.
var algorithmNames = map[string]publickey.Algorithm{"ed25519": publickey.Ed25519, "p256": publickey.P256}

// addAlgorithm adds the flag --algorithm, for one of the two.
func addAlgorithm(c *cobra.Command, at *string) {
	c.Flags().StringVar(at, "algorithm", "", "only of this `algorithm`: ed25519 or p256")
}

// algorithmsOf returns the algorithms that --algorithm names; "": all.
func algorithmsOf(c *cobra.Command, name string) ([]publickey.Algorithm, error) {
	if name == "" {
		return commandkey.Algorithms(), nil
	}
	if a, found := algorithmNames[name]; found {
		return []publickey.Algorithm{a}, nil
	}
	return nil, usage(c, "--algorithm %q is not ed25519 or p256", name)
}

// makesKey is the command that makes a key of an algorithm of which there is none. With more algorithms it would replace keys too.
func makesKey(set *commandkey.Set, a publickey.Algorithm) string {
	if set == nil {
		return "bouncerctl command-key make"
	}
	for name, algorithm := range algorithmNames {
		if algorithm == a {
			return "bouncerctl command-key rotate --algorithm " + name
		}
	}
	return ""
}

// loadCommandKeys returns the keys that are set in the configuration, and their file.
func loadCommandKeys(configFile string) (*commandkey.Set, string, error) {
	cfg, err := config.Load(configFile)
	if err != nil {
		return nil, "", err
	}
	for _, f := range cfg.Files() {
		if f.Key == keysSetting {
			return cfg.Command.Keys, f.Path, nil
		}
	}
	return nil, "", fmt.Errorf("%s is not set in %s; make keys with bouncerctl command-key make FILE%s", keysSetting, configFile, elsewhere(configFile))
}

// newCommandKeys returns a new key of each algorithm, and the file that holds them.
func newCommandKeys() ([]byte, error) {
	now := time.Now()
	keys, err := (*commandkey.Set)(nil).With(now, now, commandkey.Algorithms()...)
	if err != nil {
		return nil, err
	}
	return keys.Encode()
}

func newCommandKeyExport(configFile *string) *cobra.Command {
	var algorithm string
	c := &cobra.Command{
		Use:   "export",
		Short: "Print the public keys that devices verify commands with",
		Long: `Print the public keys, in PEM, that a device must know to verify commands: that of
the key that signs now, and of those that will. They are no secret. In a bundle they are
the file command-keys.pem, with the algorithm of the device alone.`,
		Example: `  bouncerctl command-key export --algorithm ed25519 >command-keys.pem`,
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			algorithms, err := algorithmsOf(c, algorithm)
			if err != nil {
				return err
			}
			set, _, err := loadCommandKeys(*configFile)
			if err != nil {
				return err
			}
			var text strings.Builder
			for _, a := range algorithms {
				for _, k := range set.Valid(a, time.Now()) {
					text.WriteString(k.PEM())
				}
			}
			if text.Len() == 0 {
				return fmt.Errorf("there is no such key; make one with %s", makesKey(set, algorithms[0]))
			}
			_, err = fmt.Fprint(c.OutOrStdout(), text.String())
			return err
		},
	}
	addAlgorithm(c, &algorithm)
	return c
}
