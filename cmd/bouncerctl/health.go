package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"mosquitto-bouncer/cmd/bouncerctl/output"
)

// maxHealthBytes bounds the answer.
const maxHealthBytes = 64 << 10

// unasked is the error of health where there is no listener.
type unasked struct{ error }

func newHealth(configFile *string) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Check whether a running gateway works",
		Long: `Check over the HTTP listener ([http] listen in bouncer.toml) whether a running
gateway works: whether the broker's event loop runs, the registry can be read and
the stores can be written. An unreachable backend is not reported. If something is
wrong or there is no answer within 5 s, it prints the problem and exits with 1. It
exits with 3 if there is no listener.`,
		Example: `  bouncerctl health --config /srv/bouncer/bouncer.toml`,
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := (&topOptions{}).source(*configFile, c.InOrStdin())
			if errors.Is(err, errNoListener) {
				return &unasked{err}
			}
			if err != nil {
				return err
			}
			if err := l.health(c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "ok")
			return nil
		},
	}
}

// health returns what is wrong.
func (l *listener) health(ctx context.Context) error {
	response, err := l.ask(ctx, "/healthz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	var problem struct{ Detail string }
	if err := json.NewDecoder(io.LimitReader(response.Body, maxHealthBytes)).Decode(&problem); err != nil || problem.Detail == "" {
		return fmt.Errorf("%s/healthz: answered %s", l.url, output.Printable(response.Status))
	}
	return fmt.Errorf("not well: %s", output.Printable(problem.Detail))
}
