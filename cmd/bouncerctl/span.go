package main

import (
	"fmt"
	"strings"
	"time"

	"mosquitto-bouncer/plugin/config"
)

// A span is a flag for a duration, in days too: "30d".
type span time.Duration

func (s *span) String() string {
	d := time.Duration(*s)
	if d > 0 && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return config.Short(d)
}

func (s *span) Type() string { return "duration" }

func (s *span) Set(text string) error {
	if text == "0" {
		*s = 0
		return nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if _, err := fmt.Sscanf(days+" ", "%d ", &n); err == nil && n >= 0 && n <= 100_000 && fmt.Sprint(n) == days {
			*s = span(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return fmt.Errorf("not a duration; write a number and a unit (s, m, h, d), for example 24h")
	}
	*s = span(d)
	return nil
}
