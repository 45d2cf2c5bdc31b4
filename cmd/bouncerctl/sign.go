package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/registry"
)

// errBadSignature ends a verification that has said what is wrong.
var errBadSignature = errors.New("the signature is not good")

type signOptions struct {
	device, secretFile, messageID string
	timestamp                     int64
}

func newSign(configFile *string) *cobra.Command {
	var o signOptions
	c := &cobra.Command{
		Use:   "sign --device ID",
		Short: "Make a signed message of a payload",
		Long: `Read a payload, one JSON value, from standard input, and print the message to
publish: signed over the payload as it stands, with the present time and a new
message id unless they are given. The secret is the newest of the device in the
registry, or the one in --secret-file, for which no registry is needed.`,
		Example: `  bouncerctl sign --device sensor_001 <payload.json
  echo 1 | bouncerctl sign --device sensor_001 --secret-file secret --timestamp 1727712000 \
    --message-id 550e8400-e29b-41d4-a716-446655440000`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.device == "" {
				return usage(c, "--device is missing")
			}
			if o.secretFile == "-" {
				return usage(c, "--secret-file: standard input is the payload; name a file")
			}
			payload, err := readFrom("the payload", "-", c.InOrStdin())
			if err != nil {
				return err
			}
			secrets, err := readSecrets(c.Context(), *configFile, o.secretFile, o.device, c.InOrStdin())
			if err != nil {
				return err
			}
			timestamp, id := o.timestamp, o.messageID
			if !c.Flags().Changed("timestamp") {
				timestamp = time.Now().Unix()
			}
			if id == "" {
				id = uuid.NewString()
			}
			message, err := envelope.Sign(secrets[0], o.device, timestamp, id, payload)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", message)
			return err
		},
	}
	c.Flags().StringVar(&o.device, "device", "", "the device's `id`")
	c.Flags().StringVar(&o.secretFile, "secret-file", "", "sign with the secret in `file`")
	c.Flags().Int64Var(&o.timestamp, "timestamp", 0, "the `seconds` since 1970 (default: now)")
	c.Flags().StringVar(&o.messageID, "message-id", "", "the message's `UUID` (default: a new one)")
	return c
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
		secrets, err = s.Secrets(ctx, id)
		return deviceError(id, err)
	})
	return secrets, err
}

func newVerify(configFile *string) *cobra.Command {
	var secretFile, signed string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Verify a signed message, and show what it should have been signed over",
		Long: `Read a message as a device publishes it from standard input, and verify it with
the secrets of its device in the registry, or the one in --secret-file, for which
no registry is needed. Whether it is fresh, or known, is not looked at.

Where the signature is not good, the exact bytes are shown that it should have
been made over, written as in Go or C, and the usual mistakes are tried: if one of
them gives the signature, it is named. With --signed, the bytes that the firmware
has signed are compared, and the first difference is shown. The secret never is.`,
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
			e, err := new(envelope.Decoder).Decode(message)
			if err != nil {
				return fmt.Errorf("malformed: %w; see docs/envelope.md", err)
			}
			secrets, err := readSecrets(c.Context(), *configFile, secretFile, string(e.DeviceID), c.InOrStdin())
			if err != nil {
				return err
			}
			v := verification{e: e, secrets: secrets, w: c.OutOrStdout()}
			if signed != "" {
				if v.signed, err = readBytes("--signed", signed, nil); err != nil {
					return err
				}
			}
			return v.run()
		},
	}
	c.Flags().StringVar(&secretFile, "secret-file", "", "verify with the secret in `file`")
	c.Flags().StringVar(&signed, "signed", "", "compare with the bytes in `file`, which the firmware has signed")
	return c
}

type verification struct {
	e       *envelope.Envelope
	secrets []registry.Secret
	signed  []byte // what the firmware says it has signed; nil: it does not
	w       io.Writer
}

func (v *verification) run() error {
	for i, secret := range v.secrets {
		if v.e.SignedBy(envelope.NewKey(secret)) {
			which := ""
			if i > 0 {
				which = " with a secret that has been replaced"
			}
			_, err := fmt.Fprintf(v.w, "Good: signed by %s%s, at %s.\n", v.e.DeviceID, which,
				time.Unix(v.e.Timestamp, 0).UTC().Format(time.RFC3339))
			return err
		}
	}
	asSent, canonical := v.e.AppendSigned(nil, false), v.e.AppendSigned(nil, true)
	fmt.Fprintf(v.w, "The signature is not the HMAC-SHA256 of these %d bytes, with any secret of %s:\n  %q\n", len(asSent), v.e.DeviceID, asSent)
	if !bytes.Equal(asSent, canonical) {
		fmt.Fprintf(v.w, "nor of these %d, in which the payload is in canonical form:\n  %q\n", len(canonical), canonical)
	}
	if why := v.mistake(); why != "" {
		fmt.Fprintf(v.w, "It is that of %s.\n", why)
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

// mistake names the usual mistake by which the signature came about; "" if it was none that is known.
func (v *verification) mistake() string {
	e := v.e
	head := e.AppendSigned(nil, false)
	head = head[:len(head)-len(e.Payload)]
	device, id := string(e.DeviceID), string(e.MessageIDText)
	timestamp := strings.TrimSuffix(strings.TrimPrefix(string(head), device), id)
	payloads := []struct{ text, what string }{
		{string(e.Payload), ""}, {string(e.Canonical()), ""},
		{spaced(e.Payload), " and the payload with a blank behind each comma and colon, as Python writes it by default"},
		{string(e.Payload) + "\n", " and a line end behind the payload"},
	}
	joins := []struct {
		join func(p string) string
		what string
	}{
		{func(p string) string { return device + timestamp + id + p }, ""},
		{func(p string) string { return strings.Join([]string{device, timestamp, id, p}, "|") }, `"|" between the parts`},
		{func(p string) string { return strings.Join([]string{device, timestamp, id, p}, ".") }, `"." between the parts`},
		{func(p string) string { return strings.Join([]string{device, timestamp, id, p}, ":") }, `":" between the parts`},
		{func(p string) string { return strings.Join([]string{device, timestamp, id, p}, "\n") }, "a line end between the parts"},
		{func(p string) string { return p }, "the payload alone"},
		{func(p string) string { return device + id + timestamp + p }, "message_id before timestamp"},
		{func(p string) string { return timestamp + device + id + p }, "timestamp before device_id"},
		{func(p string) string { return device + timestamp + p }, "the parts without message_id"},
		{func(p string) string { return device + timestamp + strings.ReplaceAll(id, "-", "") + p }, "message_id without its hyphens"},
		{func(p string) string { return device + timestamp + strings.ToLower(id) + p }, "message_id in lower case"},
		{func(p string) string { return device + timestamp + strings.ToUpper(id) + p }, "message_id in upper case"},
		{func(p string) string { return device + timestamp + "000" + id + p }, "a timestamp in milliseconds"},
	}
	for _, secret := range v.secrets {
		for _, k := range secretMistakes(secret) {
			key := envelope.NewKey(k.key)
			for _, j := range joins {
				for _, p := range payloads {
					if what := strings.TrimPrefix(j.what+p.what+k.what, " and "); what != "" && e.IsMAC(key, []byte(j.join(p.text))) {
						return what
					}
				}
			}
		}
	}
	return ""
}

type secretMistake struct {
	key  []byte
	what string
}

func secretMistakes(secret registry.Secret) []secretMistake {
	all := []secretMistake{
		{secret, ""},
		{append(bytes.Clone(secret), '\n'), " and a line end behind the secret"},
		{append(bytes.Clone(secret), 0), " and a NUL byte behind the secret"},
		{bytes.ToUpper(secret), " and the secret in upper case"},
	}
	if raw, err := hex.DecodeString(string(secret)); err == nil && len(raw) > 0 {
		all = append(all, secretMistake{raw, " and the secret decoded from hexadecimal, where its digits themselves are the key"})
	}
	return all
}

// spaced writes a payload as Python's json.dumps does by default: ", " and ": ".
func spaced(payload []byte) string {
	var b strings.Builder
	quoted, escaped := false, false
	for _, c := range payload {
		b.WriteByte(c)
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == ':'):
			b.WriteByte(' ')
		}
	}
	return b.String()
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
