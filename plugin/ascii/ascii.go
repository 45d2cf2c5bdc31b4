// Package ascii is the one rule for text that an HTTP header or a URL holds as it is.
package ascii

// Visible reports whether s is printable ASCII without blanks.
func Visible[T ~string | ~[]byte](s T) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
