package broker

import (
	"fmt"
	"slices"
	"strings"
)

// A Version is a version of Mosquitto: major, minor, patch.
type Version [3]int

// AtLeast reports whether v is this version or a later one.
func (v Version) AtLeast(major, minor, patch int) bool {
	return slices.Compare(v[:], []int{major, minor, patch}) >= 0
}

// String is the version as Mosquitto prints it.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Version is the version of the broker that was started last, as its log has it. It panics when there has been none: a test
// that asks for it has something to say about one version alone, and must not guess.
func (b *Broker) Version() Version {
	const before = "mosquitto version "
	for _, line := range b.log.Find(0, Matches(before+`\S+ starting`)) {
		var v Version
		_, number, _ := strings.Cut(line, before)
		if _, err := fmt.Sscanf(number, "%d.%d.%d", &v[0], &v[1], &v[2]); err == nil {
			return v
		}
	}
	panic("broker: no version in the log of a broker that has not started")
}
