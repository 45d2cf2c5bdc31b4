package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/order"
)

// orderWithin is how long an order of ours may take the gateway.
const orderWithin = 15 * time.Second

// giveOrder has the gateway carry out an order. done reports whether it has; otherwise the order waits until it runs.
func giveOrder(ctx context.Context, cfg *config.Config, o order.Order) (done bool, err error) {
	ctx, stop := context.WithTimeout(ctx, orderWithin)
	defer stop()
	o.At = time.Now()
	switch err := order.Give(ctx, filepath.Join(cfg.StateDir, order.DirName), o); {
	case errors.Is(err, order.ErrWaiting):
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%w; the plugin makes that directory when it starts, so start the broker, or correct state_dir in bouncer.toml", err)
	case errors.Is(err, fs.ErrPermission):
		return false, notPermitted(err)
	default:
		return err == nil, err
	}
}

// whenItRuns is said of an order that waits.
const whenItRuns = "The broker does not run, or is busy: this is done when it runs."
