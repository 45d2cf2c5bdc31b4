package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	library "mosquitto-bouncer/device/go"
)

func newSensor() *cobra.Command {
	var (
		dir, host string
		port      int
		interval  time.Duration
	)
	c := &cobra.Command{
		Use:     "sensor --dir BUNDLE",
		Short:   "Be one device that publishes signed readings and obeys commands until interrupted",
		Example: "  bouncer-sim sensor --dir build/run/devices/sensor_001 --interval 500ms",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			sensor, err := openSensor(dir, host, port)
			if err != nil {
				return err
			}
			say := func(format string, args ...any) {
				fmt.Fprintf(c.OutOrStdout(), "%s "+format+"\n", append([]any{clock(time.Now())}, args...)...)
			}
			sensor.OnResponse = func(text string) { say("response %s", text) }
			sensor.OnCommand = func(_ context.Context, c library.Command) (library.Reply, error) {
				say("command %s %s", c.ID, c.Body)
				return library.Reply{Status: library.Succeeded}, nil
			}
			sensor.OnCommandRefused = func(r library.Reason) { say("command refused: %s", r) }
			sensor.OnOutcome = func(o library.Outcome) { say("%s of an earlier run %s %s", o.MessageID, o.Kind, o.Reason) }
			sensor.OnError = func(err error) { say("%v", err) }
			if err := sensor.Start(); err != nil {
				return errors.Join(err, sensor.Close())
			}
			every := time.NewTicker(interval)
			defer every.Stop()
			for n := 0; ; n++ {
				m := json.RawMessage(reading(n))
				delivery, err := sensor.Publish(ctx, m)
				if err != nil && ctx.Err() == nil {
					return errors.Join(err, sensor.Close())
				}
				if err == nil {
					go func() {
						if o, err := delivery.Wait(ctx); err == nil {
							say("%s %s %s %s", o.MessageID, m, o.Kind, o.Reason)
						}
					}()
				}
				select {
				case <-every.C:
				case <-ctx.Done():
					return sensor.Close()
				}
			}
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the device's bundle, as bouncerctl device add makes it")
	c.Flags().StringVar(&host, "host", "", "the broker's host, as its certificate names it (default: the bundle's)")
	c.Flags().IntVar(&port, "port", 0, "the broker's port (default: the bundle's)")
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between readings")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

// openSensor opens the Device of a bundle, with another host or port than the bundle's where one is given.
func openSensor(dir, host string, port int) (*library.Device, error) {
	config, err := library.ReadBundle(dir, library.Options{})
	if err != nil {
		return nil, err
	}
	bundleHost, bundlePort, err := net.SplitHostPort(config.Address)
	if err != nil {
		return nil, err
	}
	if host != "" {
		bundleHost, config.TLS.ServerName = host, host
	}
	if port != 0 {
		bundlePort = strconv.Itoa(port)
	}
	config.Address = net.JoinHostPort(bundleHost, bundlePort)
	return library.Open(config, library.Options{State: filepath.Join(dir, library.StateDir)})
}

// reading is the n-th reading of a sensor in a room that warms and cools.
func reading(n int) string {
	swing := math.Sin(float64(n) / 7)
	return fmt.Sprintf(`{"temperature":%.1f,"humidity":%d}`, 22.5+2*swing, 60-int(math.Round(5*swing)))
}

func clock(t time.Time) string { return t.Format(time.TimeOnly) }
