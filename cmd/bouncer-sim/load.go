package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/test/harness/device"
)

func newLoad() *cobra.Command {
	var (
		dir, host, payload string
		port, devices      int
		load               device.Load
	)
	c := &cobra.Command{
		Use:   "load --dir BUNDLES",
		Short: "Publish as fast as the broker takes it, or at a rate, and report throughput and latency",
		Long: `Publish signed messages over MQTT 5 with QoS 1, one connection a device, each with a window of publishes in
flight, and report the accepted publishes a second and the time from PUBLISH to PUBACK.

BUNDLES is a directory of bundles, one for each device, as bouncerctl device add makes them.`,
		Example: "  bouncer-sim load --dir build/run/devices --devices 2 --window 50 --duration 10s",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !json.Valid([]byte(payload)) {
				return fmt.Errorf("--payload %q is not a JSON value", payload)
			}
			load.Payload = []byte(payload)
			var err error
			if load.Devices, err = readBundles(dir, devices, net.JoinHostPort(host, strconv.Itoa(port))); err != nil {
				return err
			}
			report, err := load.Run(c.Context())
			if report != nil {
				at := func(p float64) time.Duration { return report.Percentile(p).Round(time.Microsecond) }
				fmt.Fprintf(c.OutOrStdout(), "devices %d  window %d  seconds %.2f\n", len(load.Devices), load.Window, report.Elapsed.Seconds())
				fmt.Fprintf(c.OutOrStdout(), "sent %d  accepted %d  refused %d  accepted a second %.0f\n",
					report.Sent, report.Accepted, report.Refused, report.PerSecond())
				fmt.Fprintf(c.OutOrStdout(), "latency p50 %v  p90 %v  p99 %v  p99.9 %v  max %v\n", at(50), at(90), at(99), at(99.9), at(100))
			}
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory of bundles")
	c.Flags().StringVar(&host, "host", "localhost", "the broker's host, as its certificate names it")
	c.Flags().IntVar(&port, "port", 8883, "the broker's port")
	c.Flags().IntVar(&devices, "devices", 0, "how many of the bundles to use; 0: all")
	c.Flags().IntVar(&load.Window, "window", 50, "publishes in flight a connection")
	c.Flags().Float64Var(&load.Rate, "rate", 0, "publishes a second, all devices together; 0: no limit")
	c.Flags().DurationVar(&load.Duration, "duration", 10*time.Second, "how long to publish")
	c.Flags().StringVar(&payload, "payload", `{"temperature":22.5,"humidity":60}`, "JSON value that every message carries")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

// readBundles reads n bundles of a directory, in the order of their names, or all with n = 0.
func readBundles(dir string, n int, addr string) ([]*device.Device, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var devices []*device.Device
	for _, entry := range entries {
		if n > 0 && len(devices) == n {
			break
		}
		if !entry.IsDir() {
			continue
		}
		d, err := device.ReadBundle(filepath.Join(dir, entry.Name()), addr)
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	if len(devices) == 0 || len(devices) < n {
		return nil, fmt.Errorf("%d bundles in %q, %d wanted; make more with bouncerctl device add", len(devices), dir, max(n, 1))
	}
	return devices, nil
}
