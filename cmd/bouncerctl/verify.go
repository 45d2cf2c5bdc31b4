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
no registry is needed. Whether it is fresh, or known, is not looked at.

Where the signature is not good, the exact bytes are shown that it should have
been made over, written as in Go or C, and the usual mistakes are tried: if one of
them gives the signature, it is named, with what to do. So are a timestamp that is
not in seconds, and what keeps a message from being an envelope. With --signed,
the bytes that the firmware has signed are compared, and the first difference is
shown. The secret never is.`,
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
				if found, message = malformed(message); len(found) > 0 {
					fmt.Fprintf(c.OutOrStdout(), "The message is malformed:\n  %s.\n", strings.Join(found, ".\n  "))
				}
				if e, err = new(envelope.Decoder).Decode(message); err != nil {
					return wrong
				}
				fmt.Fprintln(c.OutOrStdout(), "With that put right:")
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
	unit := unitOf(v.e.Timestamp, now)
	for i, secret := range v.secrets {
		if !v.e.SignedBy(envelope.NewKey(secret)) {
			continue
		}
		which := ""
		if i > 0 {
			which = " with a secret that has been replaced"
		}
		if unit.name != "" {
			fmt.Fprintf(v.w, "The signature is good: signed by %s%s. But %s\n", v.e.DeviceID, which, unit.cure(v.e.Timestamp))
			return errTimestamp
		}
		_, err := fmt.Fprintf(v.w, "Good: signed by %s%s, at %s.\n", v.e.DeviceID, which,
			time.Unix(v.e.Timestamp, 0).UTC().Format(time.RFC3339))
		v.note(now)
		return err
	}
	asSent, canonical := v.e.AppendSigned(nil, false), v.e.AppendSigned(nil, true)
	fmt.Fprintf(v.w, "The signature is not the HMAC-SHA256 of these %d bytes, with any secret of %s:\n  %q\n", len(asSent), v.e.DeviceID, asSent)
	if !bytes.Equal(asSent, canonical) {
		fmt.Fprintf(v.w, "nor of these %d, in which the payload is in canonical form:\n  %q\n", len(canonical), canonical)
	}
	if why := v.mistake(); why != "" {
		fmt.Fprintf(v.w, "It is that of %s.\n", why)
	} else {
		fmt.Fprintln(v.w, "None of the usual mistakes gives it: the secret may be another one, or the message was changed after it was signed.")
	}
	if unit.name != "" {
		fmt.Fprintf(v.w, "And %s\n", unit.cure(v.e.Timestamp))
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

// note says what is odd about a message that is good.
func (v *verification) note(now time.Time) {
	sent := time.Unix(v.e.Timestamp, 0)
	switch ahead := sent.Sub(now); {
	case near(v.e.Timestamp+since2000, now):
		fmt.Fprintf(v.w, "Note: the timestamp counts from 2000, as MicroPython's time.time() does on some boards, so such a message is stale: add %d.\n", since2000)
	case v.e.Timestamp < clockSet:
		fmt.Fprintf(v.w, "Note: the timestamp is before 2001, so the device's clock is not set, or counts from its start; such a message is stale.\n")
	case ahead > 10*time.Minute:
		fmt.Fprintf(v.w, "Note: the timestamp is %s ahead of this machine's clock, and a message from the future is refused: send seconds of UTC, not of local time, or set the clocks.\n", roughly(ahead))
	}
	if payload, err := parseNode(v.e.Payload); err == nil && payload.kind == '"' {
		if inner, err := parseNode([]byte(unquoted(payload.raw))); err == nil && (inner.kind == '{' || inner.kind == '[') {
			fmt.Fprintf(v.w, "Note: the payload is a string that holds JSON, and the backend gets that string; send the value itself if it is to be one.\n")
		}
	}
}

// clockSet is a time before which no device's clock stands that is set: 2001-09-09, 10^9 seconds after 1970.
const clockSet = 1_000_000_000

// Seconds between 1970 and the beginnings from which other clocks count: .NET's ticks, Windows' FILETIME, NTP, MicroPython.
const (
	since1    = -62_135_596_800
	since1601 = -11_644_473_600
	since1900 = -2_208_988_800
	since2000 = 946_684_800
)

// near tells whether a time is within half a year of now, as that of a message is that somebody verifies.
func near(timestamp int64, now time.Time) bool {
	const halfYear = 182 * 24 * 3600
	return timestamp > now.Unix()-halfYear && timestamp < now.Unix()+halfYear
}

// A timeUnit is what a timestamp is given in by mistake. The zero value is seconds since 1970, which are none.
type timeUnit struct {
	name   string
	second int64 // so many are one second
	begin  int64 // seconds from 1970 to where it begins
}

// unitOf returns the unit of a timestamp that is too large for seconds since 1970.
func unitOf(timestamp int64, now time.Time) timeUnit {
	for _, u := range []timeUnit{{"seconds since 1900, as NTP has them", 1, since1900},
		{"units of 100 ns since 1601, as Windows' FILETIME has them", 1e7, since1601}, {"ticks, as .NET's DateTime has them", 1e7, since1}} {
		if near(timestamp/u.second+u.begin, now) {
			return u
		}
	}
	switch {
	case timestamp >= 1e17:
		return timeUnit{name: "nanoseconds", second: 1e9}
	case timestamp >= 1e14:
		return timeUnit{name: "microseconds", second: 1e6}
	case timestamp >= 1e11:
		return timeUnit{name: "milliseconds", second: 1e3}
	}
	return timeUnit{}
}

func (u timeUnit) cure(timestamp int64) string {
	return fmt.Sprintf("the timestamp is in %s, so the message is refused as from the future: sign and send seconds since 1970 (%d).", u.name, timestamp/u.second+u.begin)
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
