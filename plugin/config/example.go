package config

import (
	"strings"
	"unicode/utf8"
)

// Layout of the example.
const (
	exampleWidth  = 80
	exampleColumn = 28 // of the comment behind a setting
)

// Example returns a bouncer.toml with every setting at its default, but for values, which are TOML by the key of the setting.
// what names these exceptions, to be read after "at their defaults"; "" if there are none. A setting that is refused without
// another one is there as a comment.
func Example(what string, values map[string]string) string {
	var b strings.Builder
	writeComment(&b, "The settings of mosquitto-bouncer, at their defaults"+what+". Every line is optional.")
	b.WriteString("#\n")
	writeComment(&b, "With an unknown key or a value out of range the broker does not start, and its log names the line.")
	b.WriteString("#\n")
	writeComment(&b, `Text is in quotes. Durations: "100ms", "5s", "5m", "72h". Sizes: bytes as an integer, or "64KiB", "500MB", "1GiB". `+
		"Secrets are in separate files, which must not be readable by every user. "+
		"Live: a change takes effect on SIGHUP; all others need a restart.")
	table := Settings()
	for _, section := range sections {
		if section.name == "" {
			b.WriteByte('\n')
		} else {
			b.WriteString("\n[" + section.name + "]  # " + section.title + "\n")
		}
		for _, s := range table {
			if s.section() == section.name {
				s.writeExample(&b, values)
			}
		}
	}
	return b.String()
}

// writeExample writes the setting's line with its comment: behind it, or above it if it is long.
func (s *Setting) writeExample(b *strings.Builder, values map[string]string) {
	v, set := values[s.Key]
	if !set {
		v = s.byDefault
	}
	line := s.name() + " = " + v
	if s.needs != "" && !set {
		line = "# " + line
	}
	comment := strings.ToUpper(s.Text[:1]) + s.Text[1:] + "."
	if s.limits != "" {
		comment += " Range: " + s.limits + "."
	}
	if s.Reload != Restart {
		comment += " Live."
	}
	comment = strings.ReplaceAll(comment, "`", "")
	if utf8.RuneCountInString(line) >= exampleColumn {
		writeComment(b, comment)
		b.WriteString(line + "\n")
		return
	}
	for i, part := range wrap(comment, exampleWidth-exampleColumn-len("# ")) {
		if i > 0 {
			line = ""
		}
		b.WriteString(line + strings.Repeat(" ", exampleColumn-utf8.RuneCountInString(line)) + "# " + part + "\n")
	}
}

func writeComment(b *strings.Builder, text string) {
	for _, line := range wrap(text, exampleWidth-len("# ")) {
		b.WriteString("# " + line + "\n")
	}
}

// wrap breaks text at blanks into lines of at most width characters.
func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
