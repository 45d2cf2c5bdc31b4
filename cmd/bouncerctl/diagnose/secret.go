package diagnose

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"mosquitto-bouncer/plugin/registry"
)

// secretGuesses returns what may have been the key, the right one first.
func secretGuesses(secret registry.Secret) (all []guess) {
	text := string(secret)
	add := func(what, cure, key string) {
		if key != "" && !slices.ContainsFunc(all, func(g guess) bool { return g.text == key }) {
			all = append(all, guess{key, what, cure})
		}
	}
	const strip = "strip the line end when the secret is read"
	add("", "", text)
	add("a line end behind the secret", strip, text+"\n")
	add("a line end behind the secret", strip, text+"\r\n")
	add("a NUL byte behind the secret", "take the secret's length without the NUL", text+"\x00")
	add("a byte order mark before the secret", "save the secret without one", "\ufeff"+text)
	add("the secret in quotes", "leave the quotes out", `"`+text+`"`)
	add("the secret without the blanks around it", "the blanks are part of the secret in the registry: register it without them", strings.TrimSpace(text))
	add("the secret in upper case", "use the very characters", strings.ToUpper(text))
	add("the secret in lower case", "use the very characters", strings.ToLower(text))
	const decoded = "its characters themselves are the key: do not decode them"
	if raw, err := hex.DecodeString(text); err == nil {
		add("the secret decoded from hexadecimal, where its digits themselves are the key", decoded, string(raw))
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if raw, err := encoding.DecodeString(text); err == nil {
			add("the secret decoded from base64", decoded, string(raw))
		}
	}
	const plain = "use the secret's characters as they are"
	add("the secret in hexadecimal", plain, hex.EncodeToString(secret))
	add("the secret in base64", plain, base64.StdEncoding.EncodeToString(secret))
	sum := sha256.Sum256(secret)
	add("the secret's SHA-256", plain, string(sum[:]))
	add("the secret's SHA-256 in hexadecimal", plain, hex.EncodeToString(sum[:]))
	for _, most := range []int{16, 31, 32, 63, 64} {
		if len(text) > most {
			add("the secret's first "+strconv.Itoa(most)+" characters", "make the buffer for the secret larger", text[:most])
		}
	}
	return all
}
