package plugin

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/rotation"
)

// maxResent is how many devices with new secrets are gone through one by one; of more at once every device that commands
// wait for is sent them again.
const maxResent = 1000

// startRotation opens the record of which secrets devices use.
func (cs *commands) startRotation(c *config.Config) (err error) {
	cs.rotation, err = rotation.Open(filepath.Join(c.StateDir, rotation.FileName), rotation.Options{
		Adopted:  cs.again,
		Rotating: cs.rotating,
		Log:      cs.g.log,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", c.Where("state_dir"), err)
	}
	cs.g.checks = append(cs.g.checks, func() error {
		if why := cs.rotation.Err(); why != "" {
			return errors.New(why)
		}
		return nil
	})
	return nil
}

// rotating tells whether a secret of the device is being replaced.
func (cs *commands) rotating(device string) bool {
	d := cs.g.registry.Lookup([]byte(device))
	return d != nil && len(d.Secrets) > 1
}

// signingSecret returns the secret that a command for the device is signed with: the newest that the device is known to
// have. One that was ended at once, since it was stolen, is not among the device's. Any goroutine.
func (cs *commands) signingSecret(d *registry.Device) registry.Secret {
	d = d.At(time.Now())
	return d.Secrets[rotation.Choose(cs.rotation, d.ID, d.Secrets)]
}

// signs reports whether what is about to be given to the broker for a device is signed with the right secret still.
func (cs *commands) signs(device string, with registry.Secret) bool {
	d := cs.g.registry.Lookup([]byte(device))
	return d != nil && !d.Disabled && subtle.ConstantTimeCompare(cs.signingSecret(d), with) == 1
}

// noteSecret notes which of its secrets a device has signed an accepted message with, if that is news. Broker's thread.
func (g *Gateway) noteSecret(d *device) {
	secrets := d.registered.Secrets
	if g.commands == nil || d.signedWith >= len(secrets)-1 { // the oldest is signed with anyway
		return
	}
	if d.noted == d.registered && d.signedWith >= d.notedSecret {
		return
	}
	all := make([][]byte, len(secrets))
	for i, secret := range secrets {
		all[i] = secret
	}
	if g.commands.rotation.Note(d.registered.ID, all, d.signedWith) {
		d.noted, d.notedSecret = d.registered, d.signedWith
	}
}

// again has what waits for a device's answer sent again: it was signed with a secret that the device may not have. Any
// goroutine.
func (cs *commands) again(device string) {
	if cs.store.Len() == 0 {
		return
	}
	cs.mu.Lock()
	if len(cs.subscribed) < maxSubscribed {
		cs.subscribed[device] = time.Now()
	}
	cs.mu.Unlock()
	cs.wake()
}

// secretsChanged has commands sent again where secrets have changed.
func (cs *commands) secretsChanged(changes []registry.Change) {
	if cs == nil || cs.store.Len() == 0 {
		return
	}
	var devices []string
	for _, c := range changes {
		if c.What == registry.NewSecrets {
			devices = append(devices, c.ID)
		}
	}
	if len(devices) > maxResent {
		devices = devices[:0]
		for _, c := range cs.store.Unfinished("", time.Now()) {
			devices = append(devices, c.Device)
		}
	}
	for _, device := range devices {
		cs.again(device)
	}
}
