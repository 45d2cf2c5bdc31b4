package diagnose

import (
	"bytes"
	"errors"

	"github.com/go-json-experiment/json/jsontext"
)

// A node is a JSON value whose members stand in their order, with texts and numbers as they were sent.
type node struct {
	kind  byte     // as jsontext.Kind: '{', '[', '"', '0', or of a literal its first letter
	raw   string   // of what is neither an object nor an array
	names []string // of an object's members, as sent, in quotes
	kids  []node
}

// parseNode reads one JSON value.
func parseNode(text []byte) (node, error) {
	d := jsontext.NewDecoder(bytes.NewReader(text))
	n, err := readNode(d)
	if err == nil && len(bytes.TrimSpace(text[d.InputOffset():])) > 0 {
		err = errors.New("more than one value")
	}
	return n, err
}

func readNode(d *jsontext.Decoder) (n node, err error) {
	n.kind = byte(d.PeekKind())
	if n.kind != '{' && n.kind != '[' {
		raw, err := d.ReadValue()
		n.raw = string(raw)
		return n, err
	}
	if _, err := d.ReadToken(); err != nil {
		return n, err
	}
	for end := jsontext.Kind(n.kind + 2); d.PeekKind() != end; {
		if n.kind == '{' {
			name, err := d.ReadValue()
			if err != nil {
				return n, err
			}
			n.names = append(n.names, string(name))
		}
		kid, err := readNode(d)
		if err != nil {
			return n, err
		}
		n.kids = append(n.kids, kid)
	}
	_, err = d.ReadToken()
	return n, err
}
