package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/docpart"
)

// TestDocuments: the documents have what the table of settings gives.
func TestDocuments(t *testing.T) {
	parts := map[string]string{"live": keys(Live), "renewed": keys(Renewed), "top": markdown("")}
	for _, s := range sections[1:] {
		parts[s.name] = markdown(s.name)
	}
	docpart.Hold(t, "settings", parts, "../../docs/configuration.md", "../../docs/mosquitto_bouncer.md")
}

// keys lists the settings that take effect in one way.
func keys(reload Reload) string {
	var of []string
	for _, s := range Settings() {
		if s.Reload == reload {
			of = append(of, "`"+s.Key+"`")
		}
	}
	return strings.Join(wrap(strings.Join(of, ", ")+".", 118), "\n") + "\n"
}

// markdown is the table of one section.
func markdown(section string) string {
	var b strings.Builder
	b.WriteString("| key | meaning | type | default | range | takes effect |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, s := range Settings() {
		if s.section() != section {
			continue
		}
		effect := "on SIGHUP"
		if s.Reload == Restart {
			effect = "at a restart"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` | %s | %s |\n", s.name(), s.Text, s.kind, s.byDefault, s.limits, effect)
	}
	return b.String()
}

// TestHeadings: the documents' headings are the sections' titles.
func TestHeadings(t *testing.T) {
	content, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sections[1:] {
		if heading := fmt.Sprintf("\n### [%s]: %s\n", s.name, s.title); !strings.Contains(string(content), heading) {
			t.Errorf("docs/configuration.md has no heading %q", heading)
		}
	}
}

// TestTable: every field of Config has a row, and every row a field, a section and a text.
func TestTable(t *testing.T) {
	c := new(Config)
	rows := map[any][]string{} // by field
	names := map[string]bool{}
	for _, s := range c.table() {
		rows[s.field] = append(rows[s.field], s.Key)
		if names[s.Key] {
			t.Errorf("%s has two rows", s.Key)
		}
		names[s.Key] = true
		if !slices.ContainsFunc(sections, func(of section) bool { return of.name == s.section() }) {
			t.Errorf("%s: the section is not in sections", s.Key)
		}
		if s.Text == "" || strings.HasSuffix(s.Text, ".") || strings.ContainsAny(s.Text+s.kind+s.limits, "|\n") || strings.Count(s.Text, "`")%2 != 0 {
			t.Errorf("%s: the text is %q", s.Key, s.Text)
		}
		if s.needs != "" && !strings.HasPrefix(s.needs, s.section()+".") {
			t.Errorf("%s: needs %s", s.Key, s.needs)
		}
		if s.Reload == Restart && s.unless != nil {
			t.Errorf("%s: unless is for settings that take effect on SIGHUP", s.Key)
		}
	}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() {
				continue
			}
			if field.Type.Kind() == reflect.Struct {
				walk(v.Field(i), path+field.Name+".")
				continue
			}
			if len(rows[v.Field(i).Addr().Interface()]) == 0 {
				t.Errorf("Config.%s%s has no row in the table", path, field.Name)
			}
			delete(rows, v.Field(i).Addr().Interface())
		}
	}
	walk(reflect.ValueOf(c).Elem(), "")
	for _, keys := range rows {
		t.Errorf("%q: no field of Config", keys)
	}
}

// TestKeysInSource: keys in the source that errors name, and that are asked for, are in the table.
func TestKeysInSource(t *testing.T) {
	known := map[string]bool{}
	for _, s := range Settings() {
		known[s.Key] = true
	}
	call := regexp.MustCompile(`\b(?:Where|isSet|problem|content|secret|certPool|keyPair|roomRule)\("([^"]*)"(?:, "([^"]*)")?`)
	key := regexp.MustCompile(`^[a-z_]+(\.[a-z_]+)?$`)
	calls := 0
	for _, dir := range []string{".", "..", "../../cmd/bouncerctl"} {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, found := range call.FindAllStringSubmatch(string(source), -1) {
				calls++
				for _, name := range found[1:] {
					if key.MatchString(name) && !known[name] {
						t.Errorf("%s: %s is not in the table of settings", path, name)
					}
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if calls < 20 {
		t.Errorf("only %d keys found", calls)
	}
}

// TestDefaultsAsWritten: the example and the file of the package give the defaults.
func TestDefaultsAsWritten(t *testing.T) {
	want, err := parse("b.toml", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	example := Example("", nil)
	got, err := parse("b.toml", "/", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range got.table() {
		if !s.same(want.table()[i].value) {
			t.Errorf("%s: %s is not the default", s.Key, s.byDefault)
		}
		if s.needs == "" && !strings.Contains(got.Where(s.Key), ":") || s.needs != "" && !strings.Contains(example, "\n# "+s.name()+" = "+s.byDefault) {
			t.Errorf("%s is not in the example", s.Key)
		}
	}
	packaged, err := os.ReadFile("../../debian/bouncer.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err = parse("bouncer.toml", "/", packaged)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range got.table() {
		if !s.same(want.table()[i].value) {
			t.Errorf("debian/bouncer.toml: %s is not the default", s.Key)
		}
	}
	for line := range strings.Lines(example) {
		if len(line) > exampleWidth+1 {
			t.Errorf("a line of %d characters: %s", len(line)-1, line)
		}
	}
}
