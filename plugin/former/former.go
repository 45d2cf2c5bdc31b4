// Package former remembers, over restarts, which device ids were registered once and no longer are: to be removed from
// the registry gives no client more rights.
//
// It keeps one file, to which it appends a line for each id that it sees registered:
//
//	mosquitto-bouncer device ids 1
//	+sensor_001 9c0ad8b1
//	-sensor_001 4b1f00d2
//	! 8d3a1c77
//
// "+" is an id that is or was registered, "-" one that an operator has released, "!" says that ids may have been lost;
// the second word is the CRC-32C of what stands before the blank. What is in the file and not in the registry was
// removed, by any program, while the broker ran or not.
package former

// FileName is the name of the file in the state directory.
const FileName = "device-ids"

// Bounds. Where one is reached a Set is no longer Complete.
const (
	MaxIDs       = 1 << 18   // removed ids that are kept in memory
	MaxFileBytes = 256 << 20 // some ten million ids
)

const header = "mosquitto-bouncer device ids 1\n"

// The kinds of lines.
const (
	registeredLine = '+'
	releasedLine   = '-'
	lostLine       = '!'
)

// parse parses the text of a line; nil, as every text of an unknown kind, is a lostLine.
func parse(text []byte) (kind byte, id []byte) {
	if len(text) > 1 && (text[0] == registeredLine || text[0] == releasedLine) {
		return text[0], text[1:]
	}
	return lostLine, nil
}
