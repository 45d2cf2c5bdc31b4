package downlink

import (
	"fmt"
	"time"

	"mosquitto-bouncer/plugin/mqtt"
)

// clearWithin is how long the broker's thread may take to clear retained messages.
const clearWithin = 10 * time.Second

// maxClearBytes bounds the payloads of the queue, which are empty.
const maxClearBytes = 1 << 20

// A Clearer has the broker forget retained messages.
type Clearer struct {
	down  *Dispatcher
	queue *Queue
}

// NewClearer returns a Clearer with room for maxTopics topics at once. cleared is called on the broker's thread for each topic
// whose retained message the broker has forgotten.
func NewClearer(down *Dispatcher, maxTopics int, cleared func(topic string)) *Clearer {
	c := &Clearer{down: down}
	c.queue = down.queue(maxTopics, maxClearBytes, func(p Publish) {
		err := down.broker.Publish(p.Message)
		if err == nil {
			cleared(p.Topic)
		}
		p.Done(err == nil)
	})
	return c
}

// Clear has the broker forget what it retains on the topics, and returns when it has; the error says why it has not, for
// the first topic of which that is so. It waits for the broker's thread for 10 s at most. Any goroutine but the broker's
// thread.
func (c *Clearer) Clear(topics []string) error {
	results := make(chan error, len(topics))
	for _, topic := range topics {
		err := c.down.push(c.queue, Publish{Message: mqtt.Message{Topic: topic, Retain: true}, Done: func(given bool) {
			if !given {
				results <- fmt.Errorf("%q: the broker refused it", topic)
				return
			}
			results <- nil
		}})
		if err != nil {
			return err
		}
	}
	limit := time.NewTimer(clearWithin)
	defer limit.Stop()
	for range topics {
		select {
		case err := <-results:
			if err != nil {
				return err
			}
		case <-limit.C:
			return fmt.Errorf("the broker's event loop has not run for %v", clearWithin)
		}
	}
	return nil
}
