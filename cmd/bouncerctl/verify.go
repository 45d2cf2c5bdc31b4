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
)

// These end a verification that has said what is wrong.
var (
	errBadSignature = errors.New("the signature is not good")
	errTimestamp    = errors.New("the timestamp is not in seconds")
)

func newVerify(configFile *string) *cobra.Command {
	var secretFile, keyFile, signed string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Verify a signed message, and show what it should have been signed over",
		Long: `Read a message as a device publishes it from standard input, and verify it with
the secrets or public keys of its device in the registry, or the one in --secret-file
or --key, for which no registry is needed. Age and replay are not checked.

If the signature is wrong, it shows the exact bytes to sign, written as in Go or C,
and tries the usual mistakes: if one of them gives the signature, it names the
mistake and the correction. It also reports a timestamp that is not in seconds, and
why a message is not an envelope. With --signed, it compares the bytes that the
firmware has signed, and shows the first difference. It never shows the secret.`,
		Example: `  bouncerctl verify <message.json
  bouncerctl verify --secret-file secret --signed firmware-input.bin <message.json`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if secretFile == "-" || keyFile == "-" || signed == "-" {
				return usage(c, "standard input is the message; name a file")
			}
			if secretFile != "" && keyFile != "" {
				return usage(c, "--secret-file and --key exclude each other")
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
			by, err := readCredentials(c.Context(), *configFile, secretFile, keyFile, string(e.DeviceID), c.InOrStdin())
			if err != nil {
				return errors.Join(wrong, err)
			}
			v := verification{e: e, message: message, by: by, w: c.OutOrStdout()}
			if signed != "" {
				if v.signed, err = readBytes("--signed", signed, nil); err != nil {
					return err
				}
			}
			return errors.Join(wrong, v.run())
		},
	}
	c.Flags().StringVar(&secretFile, "secret-file", "", "verify with the secret in `file`")
	c.Flags().StringVar(&keyFile, "key", "", "verify with the public key in `file`")
	c.Flags().StringVar(&signed, "signed", "", "compare with the bytes in `file`, which the firmware has signed")
	return c
}

type verification struct {
	e       *envelope.Envelope
	message []byte // as a whole
	by      credentials
	signed  []byte // what the firmware says it has signed; nil: it does not
	w       io.Writer
}

func (v *verification) run() error {
	now := time.Now()
	timestamp := diagnose.Timestamp(v.e.Timestamp, now)
	for i, verifier := range v.by.verifiers() {
		if !verifier.Verify(v.e) {
			continue
		}
		which := ""
		if i > 0 {
			which = " with a " + v.by.kind() + " that has been replaced"
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
	algorithm := "the HMAC-SHA256"
	if len(v.by.keys) > 0 {
		algorithm = "one with " + string(v.by.keys[0].Algorithm())
	}
	fmt.Fprintf(v.w, "The signature is not %s of these %d bytes, with any %s of %s:\n  %q\n", algorithm, len(asSent), v.by.kind(), v.e.DeviceID, asSent)
	if !bytes.Equal(asSent, canonical) {
		fmt.Fprintf(v.w, "nor of these %d, in which the payload is in canonical form:\n  %q\n", len(canonical), canonical)
	}
	v.explain()
	if timestamp != "" {
		fmt.Fprintf(v.w, "And %s\n", timestamp)
	}
	if v.signed != nil {
		expected := asSent
		if firstDifference(v.signed, canonical) > firstDifference(v.signed, asSent) {
			expected = canonical
		}
		showDifference(v.w, v.signed, expected, v.by.kind())
	}
	return errBadSignature
}

// explain names the mistake.
func (v *verification) explain() {
	if why := diagnose.Length(v.e, len(v.by.keys) > 0); why != "" {
		fmt.Fprintf(v.w, "The signature %s.\n", why)
		return
	}
	if len(v.by.keys) > 0 {
		if why := diagnose.KeySignature(v.e, v.by.keys); why != "" {
			fmt.Fprintf(v.w, "It is %s.\n", why)
			return
		}
	} else if why := diagnose.Signature(v.e, v.message, v.by.secrets); why != "" {
		fmt.Fprintf(v.w, "It is that of %s.\n", why)
		return
	}
	fmt.Fprintf(v.w, "None of the usual mistakes gives it: the %s may be another one, or the message was changed after it was signed.\n", v.by.kind())
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
func showDifference(w io.Writer, signed, expected []byte, kind string) {
	at := firstDifference(signed, expected)
	if at == len(signed) && at == len(expected) {
		if kind == "secret" {
			fmt.Fprintln(w, "The firmware has signed these bytes: so its secret is another one, or its HMAC is wrong.")
		} else {
			fmt.Fprintln(w, "The firmware has signed these bytes: so its key is another one, or its signature is written in another way.")
		}
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
