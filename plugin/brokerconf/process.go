package brokerconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// ErrNotFound means that the process was started without naming a configuration
// file.
var ErrNotFound = errors.New("the command line names no configuration file (-c FILE)")

// Running reads the configuration that the broker in this process was started
// with: the files after -c or --config-file on its command line. It reads them
// as they are now, with the rights that the broker has left, which may be fewer
// than it read them with. ErrNotFound: there is no such file on the command
// line.
func Running() (*Config, error) {
	text, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return nil, fmt.Errorf("broker configuration: %w", err)
	}
	paths := configFiles(strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"))
	if len(paths) == 0 {
		return nil, fmt.Errorf("broker configuration: %w", ErrNotFound)
	}
	return readFiles(paths)
}

// configFiles returns the configuration files named on a command line of the
// broker.
func configFiles(args []string) []string {
	var paths []string
	for i := 1; i+1 < len(args); i++ {
		switch args[i] {
		case "-c", "--config-file":
			i++
			paths = append(paths, args[i])
		case "-p", "--port", "--tls-keylog":
			i++ // the value of another option
		}
	}
	return paths
}

// SelfPath returns the file that this code was loaded from: the shared object
// if it is linked into one, else the executable. The path is the one the file
// had when it was loaded; it may have been replaced since.
func SelfPath() (string, error) {
	pc, _, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("path of this library: no program counter")
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return "", fmt.Errorf("path of this library: %w", err)
	}
	path, err := mappedFile(maps, uint64(pc))
	if err != nil {
		return "", fmt.Errorf("path of this library: %w", err)
	}
	return path, nil
}

// mappedFile finds in the text of proc_pid_maps(5) the file that is mapped at
// the address:
//
//	7f1c2a600000-7f1c2a9b1000 r-xp 00022000 fe:01 1835037      /usr/lib/x.so
func mappedFile(maps []byte, address uint64) (string, error) {
	for line := range bytes.Lines(maps) {
		field := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 6)
		from, to, _ := strings.Cut(field[0], "-")
		start, errStart := strconv.ParseUint(from, 16, 64)
		end, errEnd := strconv.ParseUint(to, 16, 64)
		if errStart != nil || errEnd != nil || address < start || address >= end {
			continue
		}
		path := ""
		if len(field) == 6 {
			path = strings.TrimLeft(field[5], " ")
		}
		if !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("address %#x is not mapped from a file", address)
		}
		path = strings.ReplaceAll(path, `\012`, "\n")
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			path = strings.TrimSuffix(path, " (deleted)")
		}
		return path, nil
	}
	return "", fmt.Errorf("address %#x is not mapped", address)
}
