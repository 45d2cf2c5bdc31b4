package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// An answer is what a device says of a command: the payload of its signed message.
type answer struct {
	ID     string          `json:"command_id"`
	Status State           `json:"status"`
	Result json.RawMessage `json:"result"`
}

// parseAnswer reads an answer. The envelope's parser has seen to valid UTF-8 and to unique member names before.
func parseAnswer(payload []byte) (a answer, err error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return a, fmt.Errorf("not an object of command_id, status and, if any, result: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return a, errors.New("something follows the object")
	}
	if !ValidID(a.ID) {
		return a, errors.New("command_id is no command's id")
	}
	if !a.Status.answer() {
		return a, errors.New("status is none of succeeded, failed and rejected")
	}
	return a, nil
}
