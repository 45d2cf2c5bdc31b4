package main

import (
	"go/ast"
	"path"
	"strings"
	"testing"
)

func sources(t *testing.T) []source {
	t.Helper()
	all, err := read("../..")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func floorOf(name string) (floor, bool) {
	if strings.HasPrefix(name, "cmd/") || name == "test" || strings.HasPrefix(name, "test/") {
		return outside, true
	}
	f, ok := floors[name]
	return f, ok
}

// TestFloors holds the direction of imports: cgo, plugin, rooms, leaves, ground floor. What tests import does not count.
func TestFloors(t *testing.T) {
	seen, needed := map[string]bool{}, map[[2]string]bool{}
	for _, s := range sources(t) {
		from := path.Dir(s.name)
		upper, ok := floorOf(from)
		if !ok && !seen[from] {
			t.Errorf("%s is in no row of floors: give it one in test/house/floors.go", from)
		}
		seen[from] = true
		if !ok || s.isTest() {
			continue
		}
		for _, to := range s.imports() {
			lower, known := floorOf(to)
			if !known || lower < upper || upper == lower && (upper == ground || upper == outside) {
				continue
			}
			edge := [2]string{from, to}
			needed[edge] = true
			if allowed[edge] == "" {
				t.Errorf("%s imports %s: a %v may not import a %v", s.name, to, upper, lower)
			}
		}
	}
	for name := range floors {
		if !seen[name] {
			t.Errorf("floors has a row for %s, which is not there", name)
		}
	}
	for edge := range allowed {
		if !needed[edge] {
			t.Errorf("allowed has %s -> %s, which is not needed any more", edge[0], edge[1])
		}
	}
}

// TestRoomsDoNotKnowTheGateway: what a room needs of the root, it names in an interface of its own.
func TestRoomsDoNotKnowTheGateway(t *testing.T) {
	for _, s := range sources(t) {
		if floors[path.Dir(s.name)] != room || s.isTest() {
			continue
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			if name, ok := n.(*ast.Ident); ok && name.Name == "Gateway" {
				t.Errorf("%s mentions Gateway", s.name)
			}
			return true
		})
	}
}

// TestSizes holds the limits of files and of the Gateway.
func TestSizes(t *testing.T) {
	all := sources(t)
	for _, s := range all {
		limit := fileLines
		if path.Dir(s.name) == "plugin" && !s.isTest() {
			limit = rootLines
		}
		switch reason := overSize[s.name]; {
		case s.lines > limit && reason == "":
			t.Errorf("%s has %d lines, the limit is %d", s.name, s.lines, limit)
		case s.lines <= limit && reason != "":
			t.Errorf("%s is not over its limit of %d lines any more: take it out of overSize", s.name, limit)
		}
	}
	switch fields, _ := gateway(all); {
	case fields == 0:
		t.Error("there is no plugin.Gateway")
	case fields > gatewayFields && overSize["plugin.Gateway"] == "":
		t.Errorf("plugin.Gateway has %d fields, the limit is %d", fields, gatewayFields)
	case fields <= gatewayFields && overSize["plugin.Gateway"] != "":
		t.Errorf("plugin.Gateway is not over its limit of %d fields any more: take it out of overSize", gatewayFields)
	}
}
