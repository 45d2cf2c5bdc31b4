package check

import (
	"context"
	"path/filepath"

	"mosquitto-bouncer/cmd/bouncerctl/output"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/deadletter"
)

// nearlyFull is the part of a limit from which on its use is worth a warning.
const nearlyFull = 0.9

// A LetterRoom is the room that the dead letters take, in bytes, and the device whose letters take the most of it.
type LetterRoom struct {
	Used, Limit             int64
	Device                  string // "": there are no letters
	DeviceUsed, DeviceLimit int64
}

// ReadLetterRoom returns the room that the dead letters in s take.
func ReadLetterRoom(ctx context.Context, s *deadletter.Store, limits config.DeadLetters) (LetterRoom, error) {
	u, err := s.Usage(ctx)
	if err != nil {
		return LetterRoom{}, err
	}
	r := LetterRoom{Used: u.Bytes, Limit: limits.MaxBytes, DeviceLimit: int64(limits.DeviceShare * float64(limits.MaxBytes))}
	largest, err := s.Largest(ctx, 1)
	if len(largest) > 0 {
		r.Device, r.DeviceUsed = largest[0].Device, largest[0].Bytes
	}
	return r, err
}

// checkLetters warns where there is nearly no room for another dead letter.
func (k *checker) checkLetters() {
	s, err := deadletter.OpenExisting(filepath.Join(k.toml.StateDir, deadletter.FileName))
	if err != nil {
		return // there are none yet; whether the directory can be used is checked elsewhere
	}
	defer s.Close()
	r, err := ReadLetterRoom(context.Background(), s, k.toml.DeadLetters)
	if err != nil {
		return
	}
	if float64(r.Used) > nearlyFull*float64(r.Limit) {
		k.warn(k.set("dead_letters.max_bytes"), "the dead letters take %d of %d bytes; when they are full, devices with another one wait: requeue or drop some with bouncerctl dead", r.Used, r.Limit)
	}
	if float64(r.DeviceUsed) > nearlyFull*float64(r.DeviceLimit) {
		k.warn(k.set("dead_letters.device_share"), "the dead letters of %s take %d of %d bytes; when that is full, its messages wait: requeue or drop some with bouncerctl dead", output.Quoted(r.Device), r.DeviceUsed, r.DeviceLimit)
	}
}
