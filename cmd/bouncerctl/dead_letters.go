package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
)

// nearlyFull is from which part on check warns of the room that is taken.
const nearlyFull = 0.9

// fullest returns the room that the letters take, and the device that takes the most of it.
func fullest(ctx context.Context, s *deadletter.Store) (u deadletter.Usage, d deadletter.DeviceUsage, err error) {
	if u, err = s.Usage(ctx); err != nil {
		return u, d, err
	}
	largest, err := s.Largest(ctx, 1)
	if len(largest) > 0 {
		d = largest[0]
	}
	return u, d, err
}

// printLetterRoom prints the footer of the list: the room that the letters take.
func printLetterRoom(ctx context.Context, configFile string, s *deadletter.Store, w io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	u, d, err := fullest(ctx, s)
	if err != nil {
		return err
	}
	limits := cfg.DeadLetters
	_, err = fmt.Fprintf(w, "Room: %d of %d bytes.", u.Bytes, limits.MaxBytes)
	if err == nil && d.Device != "" {
		_, err = fmt.Fprintf(w, " The most of a device: %s, %d of %d bytes.", quoted(d.Device), d.Bytes, share(limits))
	}
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	return err
}

// share is how many bytes the letters of one device may take.
func share(l config.DeadLetters) int64 { return int64(l.DeviceShare * float64(l.MaxBytes)) }

// checkLetters warns where there is nearly no room for another dead letter.
func (k *checker) checkLetters() {
	s, err := deadletter.OpenExisting(filepath.Join(k.toml.StateDir, deadletter.FileName))
	if err != nil {
		return // there are none yet; whether the directory can be used is looked at elsewhere
	}
	defer s.Close()
	u, d, err := fullest(context.Background(), s)
	if err != nil {
		return
	}
	limits := k.toml.DeadLetters
	if float64(u.Bytes) > nearlyFull*float64(limits.MaxBytes) {
		k.warn(k.set("dead_letters.max_bytes"), "the dead letters take %d of %d bytes; when they are full, devices with another one wait: requeue or drop some with bouncerctl dead", u.Bytes, limits.MaxBytes)
	}
	if float64(d.Bytes) > nearlyFull*float64(share(limits)) {
		k.warn(k.set("dead_letters.device_share"), "the dead letters of %s take %d of %d bytes; when that is full, its messages wait: requeue or drop some with bouncerctl dead", quoted(d.Device), d.Bytes, share(limits))
	}
}
