package downlink

import (
	"time"

	"mosquitto-bouncer/plugin/command"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/registry"
)

const (
	// commandRetry is the time after which a command is tried again for which there was no room, or whose device was
	// disabled, and the least time between two deliveries of one command.
	commandRetry = time.Second
	// maxSubscribed bounds the devices that have subscribed since the goroutine looked last.
	maxSubscribed = 65536
	// maxResent is how many devices with new secrets or keys are gone through one by one; of more at once every device that
	// commands wait for is sent them again.
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
// that a device may not have, or with an algorithm that it cannot verify. nil Commands send nothing. Any goroutine.
func (cs *Commands) CredentialsChanged(changes []registry.Change) {
	if cs == nil || cs.store.Len() == 0 {
		return
	}
	var devices []string
	for _, c := range changes {
		if c.What == registry.NewSecrets || c.What == registry.NewKeys {
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
		cs.resend(device)
	}
}

// resend has what waits for a device's answer sent again. Any goroutine; it waits for nothing.
func (cs *Commands) resend(device string) {
	if cs.store.Len() == 0 {
		return
	}
	cs.mu.Lock()
	if len(cs.subscribed) < maxSubscribed {
		cs.subscribed[device] = time.Now()
	}
	cs.mu.Unlock()
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
	cs.mu.Lock()
	devices := cs.subscribed
	cs.subscribed = make(map[string]time.Time)
	cs.mu.Unlock()
	now := time.Now()
	for device, since := range devices {
		again := false // at the next tick of run
		for _, c := range cs.store.Unfinished(device, now) {
			switch {
			case !c.SentAt.Before(since): // it has been sent for this subscription
			case now.Sub(c.SentAt) <= commandRetry: // unless it has answered by then
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

// trySend is send for the goroutine, which is to outlive a panic.
func (cs *Commands) trySend(c command.Command) (done bool) {
	defer crash.Then(cs.log, "command", func() { done = true })
	return cs.send(c)
}
