package gate

import (
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// maxRelayTopics is how many topics a relay tells apart between two rounds of the broker's event loop.
const maxRelayTopics = 64

// A relay decides which accepted messages the gateway publishes itself.
//
// The broker holds a publish at QoS 2 until its PUBREL comes, and tells no plugin about the PUBREL. It may hold it twice, and
// it may release it again after a restart, from a session that it had saved earlier; released late, it replaces a newer
// retained message. So no client can receive what the broker holds: its topic is replaced by one that no client may read, in
// every copy alike. The gateway publishes the message itself, once, when it accepts it.
//
// What the gateway publishes, the broker queues until the next round of its event loop. What is published on the same
// topic until then is relayed too, at whatever QoS, so that it does not overtake.
//
// The zero value is not usable. A relay belongs to the broker's thread.
type relay struct {
	seed   maphash.Seed
	topics [maxRelayTopics]uint64 // hashes of the topics on which something is queued
	n      int                    // how many; more than there is room for: maybe on every topic

	failures rate.Sometimes // in the log
}

func newRelay() relay {
	return relay{seed: maphash.MakeSeed(), failures: rate.Sometimes{Interval: time.Minute}}
}

// takes reports whether the gateway publishes an accepted message itself.
func (r *relay) takes(topic []byte, qos byte) bool {
	if qos != 2 && r.n == 0 {
		return false
	}
	if r.n > maxRelayTopics {
		return true
	}
	hash := maphash.Bytes(r.seed, topic)
	queued := slices.Contains(r.topics[:r.n], hash)
	if qos == 2 && !queued {
		if r.n < maxRelayTopics {
			r.topics[r.n] = hash
		}
		r.n++
	}
	return qos == 2 || queued
}

// ticked notes a TICK: the broker publishes what was queued before the TICK, and only then reads the next publish. For a
// broker that never ticks, the gateway continues to relay, topic by topic.
func (r *relay) ticked() { r.n = 0 }

// RelayFailed notes that the broker did not take the copy of a message that it was to publish after Relay: it has no memory
// left. The message was accepted, and subscribers miss it.
func (g *Gate) RelayFailed(code int) {
	g.unsent.removeLast()
	g.relayFailed(fmt.Errorf("MOSQ_ERR_%d", code))
}

func (g *Gate) relayFailed(err error) {
	g.refused()
	g.relay.failures.Do(func() {
		g.log.Error("the broker did not publish an accepted QoS 2 message; subscribers miss it, the backend does not", "error", err)
	})
}
