// Package docpart holds documents to the source from which parts of them are made. Only tests use it.
package docpart

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the parts of documents that are made from the source")

// Hold fails t unless every part stands in one of the files at least, as it should be. A part stands between the lines
//
//	<!-- KIND: NAME -->
//	<!-- end -->
//
// or "# KIND: NAME" and "# end" in YAML, and is indented as they are. With the flag -update, which `make docs` sets, Hold
// writes it there.
func Hold(t *testing.T, kind string, parts map[string]string, files ...string) {
	t.Helper()
	missing := map[string]bool{}
	for name := range parts {
		missing[name] = true
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := with(string(content), kind, func(name string) string {
			part, known := parts[name]
			if !known {
				t.Errorf("%s: there is no part %s: %s", file, kind, name)
			}
			delete(missing, name)
			return part
		})
		switch {
		case want == string(content):
		case !*update:
			t.Errorf("%s is out of date; run make docs", file)
		default:
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name := range missing {
		t.Errorf("no document has the part %s: %s", kind, name)
	}
}

// with returns content with the parts as they should be.
func with(content, kind string, part func(name string) string) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(content) {
		mark, indent := comment(line)
		if mark == "end" {
			inside = false
		}
		if !inside {
			b.WriteString(line)
		}
		if name, found := strings.CutPrefix(mark, kind+": "); found {
			inside = true
			for line := range strings.Lines(part(name)) {
				b.WriteString(indent + line)
			}
		}
	}
	return b.String()
}

// comment returns what is in a line that is only a comment, and what is before it.
func comment(line string) (text, indent string) {
	trimmed := strings.TrimLeft(line, " ")
	indent = line[:len(line)-len(trimmed)]
	trimmed = strings.TrimSuffix(trimmed, "\n")
	if text, html := strings.CutPrefix(trimmed, "<!-- "); html {
		return strings.TrimSuffix(text, " -->"), indent
	}
	if text, yaml := strings.CutPrefix(trimmed, "# "); yaml {
		return text, indent
	}
	return "", ""
}
