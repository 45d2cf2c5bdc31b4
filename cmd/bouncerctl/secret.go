package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"mosquitto-bouncer/plugin/registry"
)

// maxSecretBytes bounds a secret that is given rather than made.
const maxSecretBytes = 4096

// newSecret makes a secret: 32 random bytes as hexadecimal digits.
func newSecret() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return hex.AppendEncode(nil, key)
}

// parseSecret returns the secret in a file, without the line end, LF or CRLF, behind it. All else is part of the secret, so
// what an editor does not show is refused: with it the secret would be one that no device has.
func parseSecret(content []byte, name string) ([]byte, error) {
	secret := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case secret == "":
		return nil, fmt.Errorf("the secret in %s is empty; put the secret there", name)
	case strings.TrimSpace(secret) == "":
		return nil, fmt.Errorf("the secret in %s consists of blanks only; put the secret there", name)
	case len(secret) > maxSecretBytes:
		return nil, fmt.Errorf("the secret in %s is longer than %d bytes; use a shorter one", name, maxSecretBytes)
	case !utf8.ValidString(secret) || strings.ContainsFunc(secret, unicode.IsControl):
		return nil, fmt.Errorf("the secret in %s is not one line of text; write its bytes as hexadecimal digits, and sign with those", name)
	}
	if strings.ContainsFunc(secret, invisible) {
		return nil, fmt.Errorf("the secret in %s has an invisible character (%s); write it again, by hand if necessary", name, invisibleName(secret))
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

// readSecrets returns the secret in a file, or those of a device in the registry.
func readSecrets(ctx context.Context, configFile, secretFile, id string, stdin io.Reader) (secrets []registry.Secret, err error) {
	if secretFile != "" {
		content, err := readFrom("--secret-file", secretFile, stdin)
		if err != nil {
			return nil, err
		}
		secret, err := parseSecret(content, secretFile)
		return []registry.Secret{secret}, err
	}
	err = withStore(configFile, func(s *registry.Store) error {
		if secrets, err = s.Secrets(ctx, id); errors.Is(err, registry.ErrPublicKey) {
			return err
		}
		return deviceError(id, err)
	})
	return secrets, err
}
