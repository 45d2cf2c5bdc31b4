package plugin

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestProblemReasons: the reasons of problem documents that the source and commands.md have are those of openapi.yaml.
func TestProblemReasons(t *testing.T) {
	read := func(path string) string {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	api := read("../docs/openapi.yaml")
	_, schema, _ := strings.Cut(api[strings.LastIndex(api, "\n    Problem:\n"):], "enum:\n")
	schema, _, _ = strings.Cut(schema, "detail:")
	listed := strings.Fields(strings.ReplaceAll(schema, "- ", ""))
	if len(listed) < 20 || !slices.Contains(listed, "bad_request") {
		t.Fatalf("openapi.yaml lists %q", listed)
	}

	found := map[string]string{} // where, by reason
	problem := regexp.MustCompile(`Error\{Status: [^,]+, Reason: "(\w+)",`)
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, match := range problem.FindAllStringSubmatch(read(path), -1) {
			found[match[1]] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 15 {
		t.Errorf("only %d reasons are in the source: %v", len(found), found)
	}
	_, table, _ := strings.Cut(read("../docs/commands.md"), "| status | reason | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		for _, match := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(strings.Split(row, " | ")[1], -1) {
			found[match[1]] = "commands.md"
		}
	}
	for reason, where := range found {
		if !slices.Contains(listed, reason) {
			t.Errorf("%s: %s is not in openapi.yaml", where, reason)
		}
	}
	for _, reason := range listed {
		if found[reason] == "" && !slices.Contains([]string{"bad_order", "bad_limit"}, reason) { // which have bad_ and the parameter's name
			t.Errorf("openapi.yaml: nothing gives the reason %s", reason)
		}
	}
}
