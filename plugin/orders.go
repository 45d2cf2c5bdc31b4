package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/order"
	"mosquitto-bouncer/plugin/registry"
)

const orderInterval = time.Second

// maxClears is how many topics one order may have cleared: of each device the gated ones, those of the gateway, and that of
// the answers to commands.
const maxClears = order.MaxNames * (config.MaxTopics + 4)

// orders takes an operator's orders, once a second.
type orders struct {
	dir        string
	do         func(order.Order) error
	log        *slog.Logger
	complaints rate.Sometimes
	cancel     context.CancelFunc
	ended      sync.WaitGroup
}

// startOrders makes the directory of the orders and starts to look for them.
func (g *Gateway) startOrders(c *config.Config) error {
	o := &orders{dir: filepath.Join(c.StateDir, order.DirName), do: g.carryOut, log: g.log, complaints: rate.Sometimes{Interval: 10 * time.Minute}}
	if err := order.MakeDir(o.dir); err != nil {
		return stateError(c, err)
	}
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(context.Background())
	o.ended.Go(func() { o.run(ctx) })
	g.orders = o
	return nil
}

// stop ends it; an order that is being carried out is waited for, 10 s at most.
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
	defer func() {
		if v := recover(); v != nil {
			o.log.Error("internal error, caught; please report it", "where", "orders", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	err := order.Take(ctx, o.dir, time.Now(), func(given order.Order) error {
		err := o.do(given)
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
func (g *Gateway) carryOut(o order.Order) error {
	switch o.Kind {
	case order.Release:
		for _, id := range o.Names {
			if g.registry.Lookup([]byte(id)) != nil {
				return fmt.Errorf("%w: %s is still registered", order.ErrNotYet, id)
			}
		}
		if err := g.releaseRemoved(o.Names); err != nil {
			return err
		}
		for _, id := range o.Names {
			g.audit.Add(audit.Record{Event: audit.Registry, Device: id, Change: "released"})
		}
		if len(o.Names) == 0 {
			g.audit.Add(audit.Record{Event: audit.Registry, Change: "released", Detail: "every removed id"})
		}
		g.log.Info("removed device ids released", "count", len(o.Names), "all", len(o.Names) == 0)
		return nil
	case order.ClearRetained:
		return g.clearRetained(o.Names, o.Devices)
	}
	return fmt.Errorf("unknown order %q", o.Kind)
}

// clearRetained has the broker forget what it retains on the topics, which must be gated or the gateway's own, and on all
// such topics of the devices. It returns when the broker's thread has done so.
func (g *Gateway) clearRetained(topics, devices []string) error {
	for _, id := range devices {
		if !registry.ValidID(id) {
			return fmt.Errorf("%q is no device id", id)
		}
		for _, t := range slices.Concat(g.gated, g.own) {
			topics = append(topics, t.Of(id))
		}
	}
	for _, topic := range topics {
		if _, ours := gate.DeviceLevel(slices.Concat(g.gated, g.own), []byte(topic)); !ours {
			return fmt.Errorf("%q is neither a gated topic nor one of the gateway's own", topic)
		}
	}
	if err := g.clearer.Clear(topics); err != nil {
		return err
	}
	for _, topic := range topics {
		g.audit.Add(audit.Record{Event: audit.Registry, Topic: topic, Change: "retained_cleared"})
	}
	g.log.Info("retained messages cleared", "topics", len(topics), "devices", len(devices))
	return nil
}
