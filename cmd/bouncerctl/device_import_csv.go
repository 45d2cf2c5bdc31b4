package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/textfile"
)

// maxNotes bounds what is said about a file that can be imported all the same.
const maxNotes = 10

// readCSV reads the devices of a file, and makes secrets for those without if makeSecrets. The notes are of what is
// probably not meant.
func readCSV(name string, stdin io.Reader, makeSecrets bool) (devices []registry.Registration, notes []string, err error) {
	source := stdin
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		source = f
	}
	text := bufio.NewReader(textfile.NewReader(source))
	before, comma := dialect(text)
	r := csv.NewReader(text)
	r.ReuseRecord = true
	r.Comma = comma
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("%s is empty; its first line must name the columns: id,secret", name)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	if strings.ContainsRune(strings.Join(header, ""), '\r') {
		return nil, nil, fmt.Errorf("%s: its lines end with only CR, as on old Macs; save it with LF or CRLF", name)
	}
	at, err := columns(header)
	if err != nil {
		return nil, nil, fmt.Errorf("%s:%d: %w", name, before+1, err)
	}
	lines := make(map[string]int)
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return devices, notes, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		line, _ := r.FieldPos(0)
		line += before
		d := registry.Registration{ID: strings.Clone(record[at.id])}
		place := fmt.Sprintf("%s:%d", name, line)
		switch first, twice := lines[d.ID]; {
		case !deviceid.Valid(d.ID) || d.ID == "." || d.ID == "..":
			return nil, nil, fmt.Errorf("%s: %q is not a device id%s", place, d.ID, idRule)
		case twice:
			return nil, nil, fmt.Errorf("%s: device %q is in line %d already; remove one", place, d.ID, first)
		}
		lines[d.ID] = line
		given := func(column int) bool { return column >= 0 && record[column] != "" }
		switch {
		case given(at.secret) && given(at.key):
			return nil, nil, fmt.Errorf("%s: device %q has a secret and a public key; leave one empty", place, d.ID)
		case given(at.key):
			if d.Key, err = publickey.ParseText(record[at.key]); err != nil {
				return nil, nil, fmt.Errorf("%s: device %q: %w", place, d.ID, err)
			}
		case given(at.secret):
			if d.Secret, err = parseSecret([]byte(record[at.secret]), place); err != nil {
				return nil, nil, err
			}
			if note := blanksNote(d.Secret, place); note != "" && len(notes) < maxNotes {
				notes = append(notes, note)
			}
		case makeSecrets:
			d.Secret = newSecret()
		default:
			return nil, nil, fmt.Errorf("%s: device %q has no secret; write one there, or use --out DIR to make one", place, d.ID)
		}
		devices = append(devices, d)
	}
}

// dialect looks at the first line: the fields are separated by semicolons where Excel's country has a comma in numbers, or
// by tabs; and Windows PowerShell's Export-Csv writes a line with a type before the columns, which is taken out. before is
// how many lines were.
func dialect(text *bufio.Reader) (before int, comma rune) {
	const longest = 4096 // text's buffer
	if begin, _ := text.Peek(len("#TYPE ")); string(begin) == "#TYPE " {
		_, _ = text.ReadString('\n')
		before = 1
	}
	line, _ := text.Peek(longest)
	line, _, _ = bytes.Cut(line, []byte("\n"))
	for _, other := range ";\t" {
		if !bytes.ContainsRune(line, ',') && bytes.ContainsRune(line, other) {
			return before, other
		}
	}
	return before, ','
}

// csvColumns are where the columns are; -1: nowhere.
type csvColumns struct{ id, secret, key int }

// columns finds the columns in the header.
func columns(header []string) (csvColumns, error) {
	c := csvColumns{-1, -1, -1}
	for i, column := range header {
		var at *int
		switch strings.ToLower(strings.TrimSpace(column)) {
		case "id", "device_id":
			at = &c.id
		case "secret", "shared_secret":
			at = &c.secret
		case "key", "public_key":
			at = &c.key
		default:
			return c, fmt.Errorf("unknown column %q; the first line must name the columns: id,secret", column)
		}
		if *at >= 0 {
			return c, fmt.Errorf("column %q is given twice; remove one", column)
		}
		*at = i
	}
	if c.id < 0 {
		return c, errors.New("no column id; the first line must name the columns: id,secret")
	}
	return c, nil
}
