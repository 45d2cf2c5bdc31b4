package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/crash"
	"mosquitto-bouncer/plugin/deviceid"
	"mosquitto-bouncer/plugin/downlink"
	"mosquitto-bouncer/plugin/former"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/order"
	"mosquitto-bouncer/plugin/registry"
)

const orderInterval = time.Second

// orders takes an operator's orders, once a second, and carries them out.
type orders struct {
	dir      string
	topics   *gate.Topics
	registry *registry.Registry
	removed  *former.Set
	clearer  *downlink.Clearer
	audit    *audit.Log // nil: none
	log      *slog.Logger

	complaints rate.Sometimes
	cancel     context.CancelFunc
	ended      sync.WaitGroup
}

// start makes the directory of the orders and starts to look for them.
func (o *orders) start() error {
	o.complaints = rate.Sometimes{Interval: 10 * time.Minute}
	if err := order.MakeDir(o.dir); err != nil {
		return err
	}
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(context.Background())
	o.ended.Go(func() { o.run(ctx) })
	return nil
}

// stop ends it. It waits for an order that is being carried out, 10 s at most.
func (o *orders) stop() {
	o.cancel()
	o.ended.Wait()
}

func (o *orders) run(ctx context.Context) {
	ticker := time.NewTicker(orderInterval)
	defer ticker.Stop()
	for {
		o.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (o *orders) round(ctx context.Context) {
	defer crash.Log(o.log, "orders")
	err := order.Take(ctx, o.dir, time.Now(), func(given order.Order) error {
		err := o.carryOut(given)
		if err != nil && !errors.Is(err, order.ErrNotYet) {
			o.log.Warn("an order of bouncerctl could not be carried out", "order", given.Kind, "error", err)
		}
		return err
	})
	if err != nil {
		o.complaints.Do(func() { o.log.Warn("orders of bouncerctl cannot be read", "dir", o.dir, "error", err) })
	}
}

// carryOut carries out one order. Any goroutine but the broker's.
func (o *orders) carryOut(given order.Order) error {
	switch given.Kind {
	case order.Release:
		for _, id := range given.Names {
			if o.registry.Lookup([]byte(id)) != nil {
				return fmt.Errorf("%w: %s is still registered", order.ErrNotYet, id)
			}
		}
		if err := o.release(given.Names); err != nil {
			return err
		}
		for _, id := range given.Names {
			o.audit.Add(audit.Record{Event: audit.Registry, Device: id, Change: "released"})
		}
		if len(given.Names) == 0 {
			o.audit.Add(audit.Record{Event: audit.Registry, Change: "released", Detail: "every removed id"})
		}
		o.log.Info("removed device ids released", "count", len(given.Names), "all", len(given.Names) == 0)
		return nil
	case order.ClearRetained:
		return o.clearRetained(given.Names, given.Devices)
	}
	return fmt.Errorf("unknown order %q", given.Kind)
}

// clearRetained makes the broker delete the retained messages of the topics, which must be gated or the gateway's own, and of
// all such topics of the devices. It returns when the broker's thread has done this.
func (o *orders) clearRetained(topics, devices []string) error {
	for _, id := range devices {
		if !deviceid.Valid(id) {
			return fmt.Errorf("%q is not a device id", id)
		}
		topics = append(topics, o.topics.Of(id)...)
	}
	for _, topic := range topics {
		_, gated := o.topics.Gated([]byte(topic))
		if _, own := o.topics.Own([]byte(topic)); !gated && !own {
			return fmt.Errorf("%q is neither a gated topic nor one of the gateway's own", topic)
		}
	}
	if err := o.clearer.Clear(topics); err != nil {
		return err
	}
	for _, topic := range topics {
		o.audit.Add(audit.Record{Event: audit.Registry, Topic: topic, Change: "retained_cleared"})
	}
	o.log.Info("retained messages cleared", "topics", len(topics), "devices", len(devices))
	return nil
}

// release releases removed devices' ids; no id: all of them.
func (o *orders) release(ids []string) error {
	if len(ids) == 0 {
		registered := func(yield func(string) bool) {
			for id := range o.registry.IDs() {
				if !yield(id) {
					return
				}
			}
		}
		return o.removed.ReleaseAll(registered, o.registry.Removed())
	}
	for _, id := range ids {
		if !deviceid.Valid(id) {
			return fmt.Errorf("%q is not a device id", id)
		}
	}
	return o.removed.Release(ids)
}
