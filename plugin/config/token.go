package config

import "fmt"

// MinTokenLength is the length of [http] token_file's token, in characters, below which it counts as short: the same as 16
// random bytes in hexadecimal.
const MinTokenLength = 32

// ShortTokenEnds is the version that refuses a short token.
const ShortTokenEnds = "0.2.0"

// TokenWarning returns what is wrong with a token that is accepted in this version and not in ShortTokenEnds, and what to
// do; "" where nothing is.
func (h HTTP) TokenWarning() string {
	if h.Listen == "" || len(h.Token) >= MinTokenLength {
		return ""
	}
	return fmt.Sprintf("the token is shorter than %d characters, and version %s will refuse it; make another: openssl rand -hex 32", MinTokenLength, ShortTokenEnds)
}
