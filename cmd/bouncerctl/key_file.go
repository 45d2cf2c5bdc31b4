package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"mosquitto-bouncer/cmd/bouncerctl/files"
)

// makeKeyFile makes a file with keys, which the broker's group may read, and returns its absolute path. Where there is a file of
// this name the error ends with the text exists.
func makeKeyFile(name string, content []byte, exists string) (path string, err error) {
	if path, err = filepath.Abs(name); err != nil {
		return "", err
	}
	owner, err := files.BrokerAccount()
	if err != nil {
		return "", err
	}
	if owner != nil {
		owner = &files.Account{GID: owner.GID}
	}
	var made files.Creation
	if err := made.File(path, content, 0o640, owner); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s already exists; %s", path, exists)
		}
		return "", errors.Join(err, made.Undo())
	}
	return path, nil
}
