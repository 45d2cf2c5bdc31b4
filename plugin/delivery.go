package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
	"mosquitto-bouncer/plugin/forward"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/journal"
	"mosquitto-bouncer/plugin/standing"
	"mosquitto-bouncer/plugin/suspension"

	"golang.org/x/time/rate"
)

// startDelivery opens what is kept on disk, rebuilds what the process before knew, and starts the forwarder.
func (g *Gateway) startDelivery(c *config.Config) (err error) {
	var suspended []string
	g.suspensions, suspended, err = suspension.Open(filepath.Join(c.StateDir, suspension.DirName), g.log)
	if err != nil {
		return stateError(c, err)
	}
	kept := standingOf(c, g.log)
	g.store = newStore()
	g.sink, err = webhook.New(webhook.Config{
		URL:           c.Backend.URL,
		Timeout:       c.Backend.Timeout,
		Concurrency:   c.Backend.Concurrency,
		Batch:         c.Backend.Batch,
		FatalStatuses: c.Backend.FatalStatuses,
		BearerToken:   c.Backend.BearerToken,
		SigningSecret: c.Backend.SigningSecret,
		TLS:           c.Backend.TLS,
		Version:       Version,
	})
	if err != nil {
		return err
	}
	g.forwarder, err = forward.New(forward.Config{
		Sink:        g.sink,
		Concurrency: c.Backend.Concurrency,
		MaxAge:      c.Backend.MaxAge,
		Batch:       c.Backend.Batch,
		Linger:      c.Backend.Linger,
		MaxBytes:    forward.ShareOf(deviceBytes(c)),
		Gone:        g.suspensions.Gone,
		Suspended:   suspended,
		Unordered:   c.Backend.Order == config.OrderNone,
		Standing:    forward.Standing(kept),
		Registered:  g.registry.Len,
	}, g.store, g.answered, g.log)
	if err != nil {
		return err
	}
	err = g.openJournal(journal.Options{
		Dir:         filepath.Join(c.StateDir, journal.DirName),
		MaxBytes:    c.Journal.MaxBytes,
		DeviceBytes: deviceBytes(c),
		Sync:        c.Journal.Sync,
	}, resultTopic(c))
	if err != nil {
		return stateError(c, err)
	}
	if err = g.startConfinement(c); err != nil {
		return err
	}
	g.store.letters, err = deadletter.OpenWithin(filepath.Join(c.StateDir, deadletter.FileName), letterLimits(c.DeadLetters, g.journal))
	if err != nil {
		return stateError(c, err)
	}
	g.letterRoom = &letterRoom{
		letters: g.store.letters, forwarder: g.forwarder, log: g.log, maxBytes: c.DeadLetters.MaxBytes,
		failures: rate.Sometimes{Interval: 10 * time.Minute},
	}
	g.checks = append(g.checks, g.letterRoom.ill)
	g.noteForgotten(time.Now().Unix())
	g.forwarder.Start(forward.Counts{Delivered: g.recovered.Delivered, Dead: g.recovered.Dead})
	g.startHousekeeping()
	return nil
}

// standingOf reads what the process before knew of the backend's refusals. Without it they are found out anew.
func standingOf(c *config.Config, log *slog.Logger) standing.State {
	kept, err := standing.Load(c.StateDir, c.Backend.URL)
	if err != nil {
		log.Warn("what was known of the backend cannot be read; it is asked anew", "error", err)
		return standing.State{}
	}
	// A status that is fatal now is not the backend's state any more.
	kept.Refusing = kept.Refusing && !slices.Contains(c.Backend.FatalStatuses, kept.Status)
	if kept.Refusing {
		log.Warn("the backend was refusing every message before the start; one message asks whether it still does",
			"status", kept.Status, "since", kept.Since.UTC().Format(time.RFC3339))
	}
	return kept
}

// largestOverhead is more than a message takes in the journal besides what was published.
const largestOverhead = 1 << 10

// deviceBytes is what one device may have in the journal: its share, and at least one message of the largest size.
func deviceBytes(c *config.Config) int64 {
	return max(int64(c.Journal.DeviceShare*float64(c.Journal.MaxBytes)), int64(c.Publish.MaxBytes)+largestOverhead)
}

// stateError says where the directory that err is about was set, and what to do.
func stateError(c *config.Config, err error) error {
	switch {
	case errors.Is(err, journal.ErrLocked):
		err = fmt.Errorf("%w: another broker runs with the same state_dir; stop it, or give each its own", err)
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w; create the directory, and let it belong to the broker's user", err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; let the directory, and what is in it, belong to the broker's user", err)
	}
	return fmt.Errorf("%s: %w", c.Where("state_dir"), err)
}

// stopDelivery ends what startDelivery began, as far as it came. What the backend has not taken is in the journal.
func (g *Gateway) stopDelivery() {
	if g.housekeeper != nil {
		g.housekeeper.stop()
	}
	if g.forwarder != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		if err := g.forwarder.Close(ctx); err != nil && g.journal != nil {
			g.log.Warn("the backend has not taken every accepted message yet; the rest is delivered after the next start", "why", err)
		}
	}
	if g.journal != nil {
		if err := g.journal.Close(); err != nil {
			g.log.Error("closing the journal", "error", err)
		}
	}
	if g.store != nil && g.store.letters != nil {
		if err := g.store.letters.Close(); err != nil {
			g.log.Error("closing the dead letters", "error", err)
		}
	}
}
