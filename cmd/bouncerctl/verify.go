package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/diagnose"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
)

// These end a verification that has said what is wrong.
var (
	errBadSignature = errors.New("the signature is not good")
	errTimestamp    = errors.New("the timestamp is not in seconds")
)

func newVerify(configFile *string) *cobra.Command {
	var secretFile, signed string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Verify a signed message, and show what it should have been signed over",
		Long: `Read a message as a device publishes it from standard input, and verify it with
the secrets of its device in the registry, or the one in --secret-file, for which
no registry is needed. Age and replay are not checked.

If the signature is wrong, it shows the exact bytes to sign, written as in Go or C,
and tries the usual mistakes: if one of them gives the signature, it names the
mistake and the correction. It also reports a timestamp that is not in seconds, and
why a message is not an envelope. With --signed, it compares the bytes that the
firmware has signed, and shows the first difference. It never shows the secret.`,
		Example: `  bouncerctl verify <message.json
  bouncerctl verify --secret-file secret --signed firmware-input.bin <message.json`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if secretFile == "-" || signed == "-" {
				return usage(c, "standard input is the message; name a file")
			}
			message, err := readBytes("the message", "-", c.InOrStdin())
			if err != nil {
				return err
			}
			e, wrong := new(envelope.Decoder).Decode(message)
			if wrong != nil {
				wrong = fmt.Errorf("malformed: %w; see docs/envelope.md", wrong)
				var found []string
				if found, message = diagnose.Malformed(message); len(found) > 0 {
					fmt.Fprintf(c.OutOrStdout(), "The message is malformed:\n  %s.\n", strings.Join(found, ".\n  "))
				}
				if e, err = new(envelope.Decoder).Decode(message); err != nil {
					return wrong
				}
				fmt.Fprintln(c.OutOrStdout(), "With that corrected:")
			}
			secrets, err := readSecrets(c.Context(), *configFile, secretFile, string(e.DeviceID), c.InOrStdin())
			if err != nil {
				return errors.Join(wrong, err)
			}
			v := verification{e: e, message: message, secrets: secrets, w: c.OutOrStdout()}
			if signed != "" {
				if v.signed, err = readBytes("--signed", signed, nil); err != nil {
					return err
				}
			}
			return errors.Join(wrong, v.run())
		},
	}
	c.Flags().StringVar(&secretFile, "secret-file", "", "verify with the secret in `file`")
	c.Flags().StringVar(&signed, "signed", "", "compare with the bytes in `file`, which the firmware has signed")
	return c
}

type verification struct {
	e       *envelope.Envelope
	message []byte // as a whole
	secrets []registry.Secret
	signed  []byte // what the firmware says it has signed; nil: it does not
	w       io.Writer
}

func (v *verification) run() error {
	now := time.Now()
	timestamp := diagnose.Timestamp(v.e.Timestamp, now)
	for i, secret := range v.secrets {
		if !envelope.NewVerifier(secret).Verify(v.e) {
			continue
		}
		which := ""
		if i > 0 {
			which = " with a secret that has been replaced"
		}
		if timestamp != "" {
			fmt.Fprintf(v.w, "The signature is good: signed by %s%s. But %s\n", v.e.DeviceID, which, timestamp)
			return errTimestamp
		}
		_, err := fmt.Fprintf(v.w, "Good: signed by %s%s, at %s.\n", v.e.DeviceID, which,
			time.Unix(v.e.Timestamp, 0).UTC().Format(time.RFC3339))
		for _, note := range diagnose.Notes(v.e, now) {
			fmt.Fprintf(v.w, "Note: %s\n", note)
		}
		return err
	}
	asSent, canonical := v.e.AppendSigned(nil, false), v.e.AppendSigned(nil, true)
	fmt.Fprintf(v.w, "The signature is not the HMAC-SHA256 of these %d bytes, with any secret of %s:\n  %q\n", len(asSent), v.e.DeviceID, asSent)
	if !bytes.Equal(asSent, canonical) {
		fmt.Fprintf(v.w, "nor of these %d, in which the payload is in canonical form:\n  %q\n", len(canonical), canonical)
	}
	if why := diagnose.Signature(v.e, v.message, v.secrets); why != "" {
		fmt.Fprintf(v.w, "It is that of %s.\n", why)
	} else {
		fmt.Fprintln(v.w, "None of the usual mistakes gives it: the secret may be another one, or the message was changed after it was signed.")
	}
	if timestamp != "" {
		fmt.Fprintf(v.w, "And %s\n", timestamp)
	}
	if v.signed != nil {
		expected := asSent
		if firstDifference(v.signed, canonical) > firstDifference(v.signed, asSent) {
			expected = canonical
		}
		showDifference(v.w, v.signed, expected)
	}
	return errBadSignature
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// showDifference shows where what was signed departs from what should have been.
func showDifference(w io.Writer, signed, expected []byte) {
	at := firstDifference(signed, expected)
	if at == len(signed) && at == len(expected) {
		fmt.Fprintln(w, "The firmware has signed these bytes: so its secret is another one, or its HMAC is wrong.")
		return
	}
	part := func(text []byte) string {
		from, to := max(0, at-16), min(len(text), at+24)
		for from > 0 && !utf8.RuneStart(text[from]) {
			from--
		}
		if at >= len(text) {
			return fmt.Sprintf("%q and no more (%d bytes)", text[from:], len(text))
		}
		return fmt.Sprintf("%q", text[from:to])
	}
	fmt.Fprintf(w, "The first difference is at byte %d, counted from 0:\n  signed    %s\n  expected  %s\n", at, part(signed), part(expected))
}
