package fleet

import (
	"hash/fnv"
	"strconv"
)

// Subjects returns the subjects of the stream: one for each device of each partition.
func Subjects(prefix string) string { return prefix + ".up.*.*" }

// StreamName returns the name of the stream.
func StreamName(prefix string) string { return prefix + "_up" }

// Subject returns the subject of a device's messages:
//
//	bouncer.up.13.sensor%2E001
//
// The id is one token of it: see Encode.
func Subject(prefix string, partitions int, device string) string {
	b := make([]byte, 0, len(prefix)+len(".up.")+4+len(device)+16)
	b = append(append(b, prefix...), ".up."...)
	b = append(strconv.AppendInt(b, int64(Partition(device, partitions)), 10), '.')
	return string(appendEncoded(b, device))
}

// Partition returns the number of a device's partition: the 32-bit FNV-1a hash of its id, modulo their number. It is an
// interface: consumers compute it too.
func Partition(device string, partitions int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(device))
	return int(h.Sum32() % uint32(partitions))
}

// Encode returns a device id as one token of a subject. Dots, wildcards, blanks and what is not ASCII are percent-encoded,
// and so is the percent sign: no two ids have the same token.
func Encode(device string) string { return string(appendEncoded(nil, device)) }

func appendEncoded(dst []byte, device string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(device) {
		switch c := device[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == ':':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}
