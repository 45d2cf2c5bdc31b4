package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
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

// carryOut gives an order and prints whether it is carried out already: verb says what happens to what, "cleared".
func carryOut(ctx context.Context, w io.Writer, cfg *config.Config, o order.Order, verb, what string) error {
	done, err := giveOrder(ctx, cfg, o)
	if err != nil {
		return err
	}
	if done {
		_, err = fmt.Fprintf(w, "%s%s: %s.\n", strings.ToUpper(verb[:1]), verb[1:], what)
		return err
	}
	_, err = fmt.Fprintf(w, "To be %s: %s. The broker does not run, or is busy: this is done when it runs.\n", verb, what)
	return err
}
