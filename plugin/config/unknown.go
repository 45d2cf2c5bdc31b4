package config

import (
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// refuseUnknown reports every key and section that is not in the table.
func (d *document) refuseUnknown(table []Setting) {
	var known, names []string // of settings and sections
	for _, s := range table {
		known = append(known, s.Key)
	}
	for _, s := range sections[1:] {
		names = append(names, s.name)
	}
	said := map[string]bool{}
	for _, e := range d.entries {
		section, _, nested := strings.Cut(e.key, ".")
		switch {
		case slices.Contains(known, e.key) || said[e.key]:
		case slices.Contains(names, e.key):
			if e.kind != unstable.Table && e.kind != unstable.InlineTable {
				said[e.key] = true
				d.problemAt(e.line, e.key, "is a section; write [%s] on a line of its own and its settings below", e.key)
			}
		case nested && said[section]:
			// One word about the section is enough.
		case !nested && (e.kind == unstable.Table || e.kind == unstable.ArrayTable || e.kind == unstable.InlineTable):
			said[e.key] = true
			d.problemAt(e.line, e.key, "unknown section; %s", didYouMean(e.key, names))
		default:
			said[e.key] = true
			d.problemAt(e.line, e.key, "unknown key; %s", didYouMean(e.key, known))
		}
	}
}

// didYouMean says what to do about an unknown key.
func didYouMean(key string, known []string) string {
	nearest, best := "", 4
	for _, k := range known {
		distance := editDistance(key, k)
		// The right name in the wrong section.
		_, name, _ := strings.Cut(k, ".")
		if own := key[strings.LastIndexByte(key, '.')+1:]; name != "" {
			distance = min(distance, 1+editDistance(own, name))
		}
		if distance < best && distance <= len(key)/2 {
			nearest, best = k, distance
		}
	}
	if nearest == "" {
		return "remove it"
	}
	return "did you mean " + nearest + "?"
}

// editDistance is the Levenshtein distance of two short strings; of a long one
// it is only said that it is large.
func editDistance(a, b string) int {
	const long = 100
	if len(a) > long || len(b) > long {
		return long
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitution, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
