package main

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/test/harness/device"
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
			ctx, out := c.Context(), c.OutOrStdout()
			d, err := device.ReadBundle(dir, net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				return err
			}
			client, err := d.ConnectV5(ctx)
			if err != nil {
				return err
			}
			defer client.Close()
			if err := client.Subscribe(ctx, d.ResponseTopic(), 1); err != nil {
				return err
			}
			go func() {
				for seen := 0; ; seen++ {
					responses, err := client.Inbox().WaitCount(ctx, d.ResponseTopic(), seen+1)
					if err != nil {
						return
					}
					fmt.Fprintf(out, "%s response %s\n", clock(time.Now()), responses[seen].Payload)
				}
			}()
			if err := client.Subscribe(ctx, d.CommandTopic(), 1); err != nil {
				return err
			}
			go func() {
				obeyed := func(c device.Command) (status, result string) { return "succeeded", "" }
				err := d.Obey(ctx, client, obeyed, func(c device.Command, err error) {
					if err != nil {
						fmt.Fprintf(out, "%s command refused: %v\n", clock(time.Now()), err)
						return
					}
					fmt.Fprintf(out, "%s command %s %s\n", clock(time.Now()), c.ID, c.Body)
				})
				if err != nil {
					fmt.Fprintf(out, "%s the answer to a command was not sent: %v\n", clock(time.Now()), err)
				}
			}()
			every := time.NewTicker(interval)
			defer every.Stop()
			for n := 0; ; n++ {
				m := d.Sign(reading(n))
				ack, err := client.Publish(ctx, d.DataTopic(), 1, false, m.Bytes)
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "%s %s %s PUBACK %s\n", clock(time.Now()), m.MessageID, m.Payload, ack)
				select {
				case <-every.C:
				case <-client.Done():
					return fmt.Errorf("%s lost its connection to %s", d.ID, d.Addr)
				case <-ctx.Done():
					return nil
				}
			}
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the device's bundle, as bouncerctl device add makes it")
	c.Flags().StringVar(&host, "host", "localhost", "the broker's host, as its certificate names it")
	c.Flags().IntVar(&port, "port", 8883, "the broker's port")
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between readings")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

// reading is the n-th reading of a sensor in a room that warms and cools.
func reading(n int) string {
	swing := math.Sin(float64(n) / 7)
	return fmt.Sprintf(`{"temperature":%.1f,"humidity":%d}`, 22.5+2*swing, 60-int(math.Round(5*swing)))
}

func clock(t time.Time) string { return t.Format(time.TimeOnly) }
