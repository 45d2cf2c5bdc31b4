// Package deviceid is the one rule for device ids.
package deviceid

// MaxLen is the greatest length of a device id, in bytes.
const MaxLen = 64

// Rule is what Valid asks for, as a text for errors and help.
const Rule = "1 to 64 of A-Z a-z 0-9 . _ : -"

// Valid reports whether id is a device id: see Rule. It takes no memory.
func Valid[T ~string | ~[]byte](id T) bool {
	if len(id) < 1 || len(id) > MaxLen {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return true
}
