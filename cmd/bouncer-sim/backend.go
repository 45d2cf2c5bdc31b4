package main

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/test/harness/backend"
)

func newBackend() *cobra.Command {
	var (
		listen string
		status int
	)
	c := &cobra.Command{
		Use:     "backend",
		Short:   "Be a backend that prints what it is sent, until interrupted",
		Example: "  bouncer-sim backend --listen 127.0.0.1:5000",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, out := c.Context(), c.OutOrStdout()
			b, err := backend.New(listen)
			if err != nil {
				return err
			}
			if status != http.StatusOK {
				b.Script(backend.Status(status))
			}
			fmt.Fprintf(out, "listening on http://%s\n", b.Addr())
			for {
				requests, err := b.Take(ctx)
				if err != nil {
					return b.Close()
				}
				for _, r := range requests {
					fmt.Fprintf(out, "%s %s %s ce-id=%s %s\n", clock(r.At), r.Method, r.Path, r.MessageID(), r.Body)
				}
			}
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:5000", "address to listen on")
	c.Flags().IntVar(&status, "status", http.StatusOK, fmt.Sprintf("status to answer with; %d answers with a body too", http.StatusOK))
	return c
}
