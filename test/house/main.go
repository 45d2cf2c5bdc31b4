// House counts what the structure of the code is judged by: fields and methods of plugin.Gateway, files and lines of each
// package, and the largest files. Its test holds the direction of imports and the limits of size. Run it by `make house`.
package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// module is how import paths of this repository begin.
const module = "mosquitto-bouncer/"

// A source is a Go file.
type source struct {
	name  string // below the root, with slashes
	lines int
	tree  *ast.File
}

func (s source) isTest() bool { return strings.HasSuffix(s.name, "_test.go") }

// read parses every Go file below a directory, whatever its build constraints.
func read(root string) (sources []source, err error) {
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "build" || entry.Name() == "testdata"):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(name) != ".go":
			return nil
		}
		tree, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		sources = append(sources, source{filepath.ToSlash(below), fset.File(tree.FileStart).LineCount(), tree})
		return nil
	})
	return sources, err
}

// imports are the packages of this repository that a file imports, below the module.
func (s source) imports() (packages []string) {
	for _, spec := range s.tree.Imports {
		name, _ := strconv.Unquote(spec.Path.Value) // the parser has checked it
		if below, ok := strings.CutPrefix(name, module); ok {
			packages = append(packages, below)
		}
	}
	return packages
}

// gateway counts the fields and the methods of plugin.Gateway.
func gateway(sources []source) (fields, methods int) {
	for _, s := range sources {
		if path.Dir(s.name) != "plugin" || s.isTest() {
			continue
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if body, ok := n.Type.(*ast.StructType); ok && n.Name.Name == "Gateway" {
					fields = body.Fields.NumFields()
				}
			case *ast.FuncDecl:
				if n.Recv == nil {
					break
				}
				if pointer, ok := n.Recv.List[0].Type.(*ast.StarExpr); ok {
					if name, ok := pointer.X.(*ast.Ident); ok && name.Name == "Gateway" {
						methods++
					}
				}
			}
			return true
		})
	}
	return fields, methods
}

func main() {
	if len(os.Args) > 2 {
		fmt.Fprintln(os.Stderr, "usage: house [DIRECTORY]")
		os.Exit(2)
	}
	root := "."
	if len(os.Args) == 2 {
		root = os.Args[1]
	}
	sources, err := read(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, "house:", err)
		os.Exit(1)
	}
	fields, methods := gateway(sources)
	fmt.Printf("plugin.Gateway: %d fields, %d methods\n\n", fields, methods)

	type size struct{ files, lines, testFiles, testLines int }
	packages := map[string]*size{}
	var total size
	for _, s := range sources {
		dir := path.Dir(s.name)
		if packages[dir] == nil {
			packages[dir] = &size{}
		}
		for _, sum := range []*size{packages[dir], &total} {
			if s.isTest() {
				sum.testFiles++
				sum.testLines += s.lines
			} else {
				sum.files++
				sum.lines += s.lines
			}
		}
	}
	row := func(name string, s size) {
		fmt.Printf("%-32s %6d %7d %11d %11d\n", name, s.files, s.lines, s.testFiles, s.testLines)
	}
	fmt.Printf("%-32s %6s %7s %11s %11s\n", "package", "files", "lines", "test files", "test lines")
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		row(dir, *packages[dir])
	}
	row("total", total)

	fmt.Println("\nlargest files")
	slices.SortFunc(sources, func(a, b source) int { return cmp.Or(cmp.Compare(b.lines, a.lines), cmp.Compare(a.name, b.name)) })
	for _, s := range sources[:min(10, len(sources))] {
		fmt.Printf("%7d %s\n", s.lines, s.name)
	}
}
