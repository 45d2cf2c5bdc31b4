package samples

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest    = regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9_]*)`")
	declaredTest = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9_]*)\(`)
)

// TestNamedTestsExist: the documents name tests as evidence, so each must exist.
func TestNamedTestsExist(t *testing.T) {
	const root = "../.."
	declared := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "build" || strings.HasPrefix(e.Name(), ".") && path != root) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, name := range declaredTest.FindAllSubmatch(text, -1) {
			declared[string(name[1])] = true
		}
		return err
	})
	if err != nil || len(declared) == 0 {
		t.Fatal(len(declared), err)
	}
	files, err := documents(root)
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range namedTest.FindAllSubmatch(text, -1) {
			names++
			if !declared[string(name[1])] {
				t.Errorf("%s names %s, and there is no such test", file, name[1])
			}
		}
	}
	if names == 0 {
		t.Error("the documents name no test")
	}
}
