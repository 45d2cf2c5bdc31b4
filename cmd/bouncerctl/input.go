package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/plugin/textfile"
)

// maxInputBytes bounds what is read whole: a secret, a request, a message.
const maxInputBytes = 1 << 20

// readFrom reads the text in the file that a flag names, - for standard input, without a byte order mark.
func readFrom(flag, name string, stdin io.Reader) ([]byte, error) {
	content, err := readBytes(flag, name, stdin)
	if err != nil {
		return nil, err
	}
	if content, err = textfile.Decode(content); err != nil {
		return nil, fmt.Errorf("%s: what is in %s %w", flag, inputName(name), err)
	}
	return content, nil
}

func inputName(name string) string {
	if name == "-" {
		return "standard input"
	}
	return name
}

// readBytes is readFrom for what need not be text.
func readBytes(flag, name string, stdin io.Reader) ([]byte, error) {
	source := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		defer f.Close()
		source = f
	}
	content, err := io.ReadAll(io.LimitReader(source, maxInputBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if len(content) > maxInputBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes; name the right file", flag, maxInputBytes)
	}
	return content, nil
}

// oneFile wants a file and nothing else.
func oneFile(c *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usage(c, "no file given")
	case 1:
		return nil
	}
	return usage(c, "unexpected argument %q, one file at a time", args[1])
}
