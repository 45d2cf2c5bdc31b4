package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
)

// credentials are what a device signs with, newest first: secrets, or public keys.
type credentials struct {
	secrets []registry.Secret
	keys    []*publickey.Key
}

// kind is what they are called.
func (c *credentials) kind() string {
	if len(c.keys) > 0 {
		return "public key"
	}
	return "secret"
}

func (c *credentials) verifiers() (all []envelope.Verifier) {
	for _, secret := range c.secrets {
		all = append(all, envelope.NewVerifier(secret))
	}
	for _, key := range c.keys {
		all = append(all, envelope.NewKeyVerifier(key))
	}
	return all
}

// readCredentials returns the secret or the public key in a file, or what a device has in the registry.
func readCredentials(ctx context.Context, configFile, secretFile, keyFile, id string, stdin io.Reader) (c credentials, err error) {
	switch {
	case keyFile != "":
		key, err := readPublicKey(keyFile, stdin)
		return credentials{keys: []*publickey.Key{key}}, err
	case secretFile != "":
		c.secrets, err = readSecrets(ctx, configFile, secretFile, id, stdin)
		return c, err
	}
	err = withStore(configFile, func(s *registry.Store) (err error) {
		if c.secrets, err = s.Secrets(ctx, id); errors.Is(err, registry.ErrPublicKey) {
			c.keys, err = s.Keys(ctx, id)
		}
		return deviceError(id, err)
	})
	return c, err
}

// readPublicKey reads the file of --key.
func readPublicKey(name string, stdin io.Reader) (*publickey.Key, error) {
	content, err := readFrom("--key", name, stdin)
	if err != nil {
		return nil, err
	}
	key, err := publickey.ParsePEM(content)
	if err != nil {
		return nil, fmt.Errorf("--key: what is in %s is refused: %w", inputName(name), err)
	}
	return key, nil
}
