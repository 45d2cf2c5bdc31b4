package downlink

import (
	"errors"
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/commandkey"
	"mosquitto-bouncer/plugin/envelope"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
	"mosquitto-bouncer/plugin/rotation"
)

// A credential is what a command is signed with: a secret of the device, or where the device has a public key, a private key of
// the gateway. Which of the two follows from what the device has, and from nothing in a message. The algorithm of the gateway's key
// is that of the device's, since that is the one that the device can compute.
//
// A device verifies commands with the gateway's public key and data is verified with the device's, so neither signature passes
// for one of the other kind, whatever is in it; and the id of a command, of version 8, keeps them apart where both are
// made with one secret.
type credential struct {
	signer envelope.Signer
	secret registry.Secret // nil: signer has a key of the gateway
	key    *commandkey.Key // likewise
}

func (c credential) same(other credential) bool {
	if c.secret != nil || other.secret != nil {
		return c.secret.Equal(other.secret)
	}
	return c.key.Public().Equal(other.key.Public())
}

// secrets returns the secrets of a device, or what stands for its public keys, newest first.
func secrets(d *registry.Device) [][]byte {
	var all [][]byte
	for _, s := range d.Secrets {
		all = append(all, s)
	}
	for _, k := range d.Keys() {
		f := k.Fingerprint()
		all = append(all, f[:])
	}
	return all
}

// rotating reports whether a secret or a public key of the device is being replaced.
func (cs *Commands) rotating(device string) bool {
	d := cs.options.Registry.Lookup([]byte(device))
	return d != nil && len(d.Secrets)+len(d.Keys()) > 1
}

// credentialOf returns what a command for the device is signed with. Of its secrets it is the newest that the device is known to
// have: one that was ended at once, since it was stolen, is not among the device's. For a device with public keys it is a key
// of the gateway, of the algorithm of the newest key that the device is known to have. The error is a NoCommandKeyError where
// the gateway has none. Any goroutine.
func (cs *Commands) credentialOf(d *registry.Device) (credential, error) {
	now := time.Now()
	d = d.At(now)
	which := rotation.Choose(cs.used, d.ID, secrets(d))
	if len(d.Secrets) > 0 {
		return credential{signer: envelope.NewSigner(d.Secrets[which]), secret: d.Secrets[which]}, nil
	}
	algorithm := d.Keys()[which].Algorithm()
	key := cs.keys.Load().Signing(algorithm, now)
	if key == nil {
		return credential{}, NoCommandKeyError(algorithm)
	}
	return credential{signer: key.Signer(), key: key}, nil
}

// A NoCommandKeyError is the lack of a key of the gateway to sign a command with, of the algorithm of the device's public key.
type NoCommandKeyError publickey.Algorithm

func (e NoCommandKeyError) Error() string {
	return fmt.Sprintf("the device signs with a public key, and the gateway has no %s key of its own to sign commands to it with", string(e))
}

// signs reports whether what is about to be given to the broker for a device is signed with the right credential still.
func (cs *Commands) signs(device string, with credential) bool {
	d := cs.options.Registry.Lookup([]byte(device))
	if d == nil || d.Disabled {
		return false
	}
	now, err := cs.credentialOf(d)
	return err == nil && now.same(with)
}

// SetKeys replaces the gateway's own keys; nil: it has none. Where another key signs from now on, commands that wait for an answer
// are sent again: they may be signed with a key that devices are not to trust any more. nil Commands take nothing. It waits
// for nothing. Broker's thread.
func (cs *Commands) SetKeys(keys *commandkey.Set) {
	if cs == nil {
		return
	}
	before, now := cs.keys.Swap(keys), time.Now()
	for _, a := range commandkey.Algorithms() {
		if !sameKey(before.Signing(a, now), keys.Signing(a, now)) {
			cs.mu.Lock()
			cs.rekeyed[a] = now
			cs.mu.Unlock()
			cs.ask()
		}
	}
}

func sameKey(a, b *commandkey.Key) bool {
	return a == b || a != nil && b != nil && a.Public().Equal(b.Public())
}

// Used notes that a device has signed an accepted message with that one of its secrets or public keys, in the order of
// registry.Device. It returns false where there is no room to note it: then it is to be called for the next message. It
// waits for nothing. Broker's thread.
func (cs *Commands) Used(d *registry.Device, which int) bool {
	return cs.used.Note(d.ID, secrets(d), which)
}

// Health returns why it cannot be stored just now which secrets devices use, nil where it can.
func (cs *Commands) Health() error {
	if why := cs.used.Err(); why != "" {
		return errors.New(why)
	}
	return nil
}
