package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/bundle"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
)

// hand makes a directory with something new for a device, and changes the registry; both or neither. It returns the
// directory, and the names of the files in it.
func hand(id, configFile, out string, certify bool, request, secret []byte, ends time.Time,
	change func(context.Context, *registry.Store, bundle.Certificate) error) (dir string, names []string, err error) {
	if !deviceid.Valid(id) { // other programs may have registered what is none; the directory would be anywhere
		return "", nil, fmt.Errorf("%q is not a device id%s; remove it, and register the device by another", id, idRule)
	}
	cfg, err := config.Load(configFile)
	if err != nil {
		return "", nil, err
	}
	if out, err = bundleDir(cfg, out, id+"."+time.Now().UTC().Format("20060102T150405.000Z")); err != nil {
		return "", nil, err
	}
	ctx, stop := interruptible()
	defer stop()
	store, err := openStore(cfg, false)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = store.Close() }()
	known, err := store.Get(ctx, id)
	if err != nil {
		return "", nil, deviceError(id, err)
	}
	var signing *publickey.Key
	if certify && len(known.Keys) > 0 && known.Keys[0].OfCertificate {
		signing = known.Keys[0].Key
		if known.CertificateExpires.After(time.Now()) {
			ends = known.CertificateExpires
		}
	}
	m, err := newMaker(cfg, filepath.Dir(configFile), certify)
	if err != nil {
		return "", nil, err
	}
	m.Request = request
	b, cert, err := m.Update(id, secret, signing, ends)
	if err != nil {
		return "", nil, err
	}
	if err := writeBundle(id, b, out, func() error { return change(ctx, store, cert) }); err != nil {
		return "", nil, err
	}
	return out, b.Names(), nil
}
