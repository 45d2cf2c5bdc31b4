package downlink

import (
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/publickey"
	"mosquitto-bouncer/plugin/registry"
)

const (
	// commandRetry is the time after which a command is tried again for which there was no room, or whose device was
	// disabled, and the least time between two deliveries of one command.
	commandRetry = time.Second
	// maxSubscribed bounds the devices that have subscribed since the goroutine looked last.
	maxSubscribed = 65536
	// maxResent is how many devices with new secrets or keys are looked for one by one; with more at once, all commands are
	// gone through.
	maxResent = 1000
)

// Subscribed notes that a device subscribes to a topic. Where it is that of its commands, the device is sent those that
// wait for its answer: it may have been away without a session when they were sent. nil Commands note nothing. Broker's
// thread.
func (cs *Commands) Subscribed(identity, topic []byte) {
	if cs == nil || cs.store.Len() == 0 || string(topic) != cs.topicOf(string(identity)) {
		return
	}
	cs.resend(string(identity))
}

// CredentialsChanged has the commands of devices with new secrets or public keys sent again: they were signed with a secret
// that a device may not have, or with an algorithm that it cannot verify. A device that was removed and registered again
// has new ones. nil Commands send nothing. Any goroutine.
func (cs *Commands) CredentialsChanged(changes []registry.Change) {
	if cs == nil || cs.store.Len() == 0 {
		return
	}
	devices := make(map[string]struct{})
	for _, c := range changes {
		switch c.What {
		case registry.NewSecrets, registry.NewKeys, registry.Added:
			devices[c.ID] = struct{}{}
		}
	}
	if len(devices) <= maxResent {
		for device := range devices {
			cs.resend(device)
		}
		return
	}
	for _, c := range cs.store.Unfinished("", time.Now()) {
		if _, changed := devices[c.Device]; changed {
			cs.resend(c.Device)
		}
	}
}

// resend has what waits for a device's answer sent again. Any goroutine; it waits for nothing.
func (cs *Commands) resend(device string) {
	if cs.store.Len() > 0 {
		cs.resendLater(device)
		cs.ask()
	}
}

// resendLater is resend at the next tick of run.
func (cs *Commands) resendLater(device string) {
	cs.mu.Lock()
	if len(cs.subscribed) < maxSubscribed {
		cs.subscribed[device] = time.Now()
	}
	cs.mu.Unlock()
}

// ask has run look at what is to be sent again.
func (cs *Commands) ask() {
	select {
	case cs.asked <- struct{}{}:
	default:
	}
}

// run sends what was not sent when it came, and at first also what was: the broker may have lost it in a crash, and a
// device that finds its session again has no reason to subscribe.
func (cs *Commands) run() {
	start := time.Now()
	waiting := cs.store.Unfinished("", start)
	cs.mu.Lock()
	for _, c := range waiting {
		cs.subscribed[c.Device] = start
	}
	cs.mu.Unlock()
	cs.serveSubscribed()
	every := time.NewTicker(commandRetry)
	defer every.Stop()
	for {
		select {
		case <-cs.stop:
			return
		case <-every.C:
			cs.retry()
			cs.serveSubscribed()
		case <-cs.asked:
			cs.serveSubscribed()
		}
	}
}

func (cs *Commands) retry() {
	if cs.store.Len() == 0 {
		return
	}
	now := time.Now()
	for _, c := range cs.store.Unfinished("", now) {
		if c.State == command.Queued && now.Sub(c.Created) > commandRetry {
			cs.trySend(c)
		}
	}
}

func (cs *Commands) serveSubscribed() {
	for device, since := range cs.takeSubscribed() {
		again := false // at the next tick of run
		for _, c := range cs.store.Unfinished(device, time.Now()) {
			sent, now := c.SentAt, time.Now()
			if sent.After(now) { // by the clock of an earlier process, which was ahead
				sent = time.Time{}
			}
			switch {
			case !sent.Before(since): // it has been sent for this subscription
			case now.Sub(sent) <= commandRetry: // unless it has answered by then
				again = true
			case !cs.trySend(c):
				again = true
			}
		}
		if again {
			cs.mu.Lock()
			if _, newer := cs.subscribed[device]; !newer {
				cs.subscribed[device] = since
			}
			cs.mu.Unlock()
		}
	}
}

// takeSubscribed returns what serveSubscribed is to look at, with the devices whose commands are signed with a key of the gateway that
// was replaced.
func (cs *Commands) takeSubscribed() map[string]time.Time {
	cs.mu.Lock()
	devices, rekeyed := cs.subscribed, cs.rekeyed
	cs.subscribed, cs.rekeyed = make(map[string]time.Time), make(map[publickey.Algorithm]time.Time)
	cs.mu.Unlock()
	if len(rekeyed) == 0 {
		return devices
	}
	for _, c := range cs.store.Unfinished("", time.Now()) {
		d := cs.options.Registry.Lookup([]byte(c.Device))
		if d == nil {
			continue
		}
		for _, key := range d.Keys() {
			if since, replaced := rekeyed[key.Algorithm()]; replaced && since.After(devices[c.Device]) {
				devices[c.Device] = since
			}
		}
	}
	return devices
}

// trySend is send for the goroutine, which is to outlive a panic.
func (cs *Commands) trySend(c command.Command) (done bool) {
	defer crash.Then(cs.log, "command", func() { done = true })
	return cs.send(c)
}
