package downlink

import (
	"crypto/subtle"
	"errors"
	"time"

	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/rotation"
)

// rotating reports whether a secret of the device is being replaced.
func (cs *Commands) rotating(device string) bool {
	d := cs.options.Registry.Lookup([]byte(device))
	return d != nil && len(d.Secrets) > 1
}

// signingSecret returns the secret that a command for the device is signed with: the newest that the device is known to
// have. One that was ended at once, since it was stolen, is not among the device's. nil: it has none, but public keys. Any
// goroutine.
func (cs *Commands) signingSecret(d *registry.Device) registry.Secret {
	if len(d.Secrets) == 0 {
		return nil
	}
	d = d.At(time.Now())
	return d.Secrets[rotation.Choose(cs.used, d.ID, d.Secrets)]
}

// signs reports whether what is about to be given to the broker for a device is signed with the right secret still.
func (cs *Commands) signs(device string, with registry.Secret) bool {
	d := cs.options.Registry.Lookup([]byte(device))
	return d != nil && !d.Disabled && len(d.Secrets) > 0 && subtle.ConstantTimeCompare(cs.signingSecret(d), with) == 1
}

// Used notes that a device has signed an accepted message with d.Secrets[secret]. It returns false where there is no room to
// note it: then it is to be called for the next message. It waits for nothing. Broker's thread.
func (cs *Commands) Used(d *registry.Device, secret int) bool {
	all := make([][]byte, len(d.Secrets))
	for i, s := range d.Secrets {
		all[i] = s
	}
	return cs.used.Note(d.ID, all, secret)
}

// Health returns why it cannot be stored just now which secrets devices use, nil where it can.
func (cs *Commands) Health() error {
	if why := cs.used.Err(); why != "" {
		return errors.New(why)
	}
	return nil
}
