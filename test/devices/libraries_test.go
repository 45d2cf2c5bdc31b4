package devices

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// A library is one of the libraries for devices: how its agent and its cross-checker are started.
type library struct {
	name              string
	agent, crosscheck []string
}

// source is the directory of the libraries.
const source = "../../device/"

// built is where TestMain puts the programs that have to be built.
var built string

// libraries is the table of them. Each scenario runs with each of them.
func libraries() []library {
	return []library{
		{"go", []string{filepath.Join(built, "agent")}, []string{filepath.Join(built, "crosscheck")}},
		{"python", []string{"/usr/bin/python3", source + "python/agent.py"}, []string{"/usr/bin/python3", source + "python/crosscheck.py"}},
		{"c", []string{filepath.Join(built, "c/agent/agent")}, []string{filepath.Join(built, "c/crosscheck/crosscheck")}},
		{"js", []string{"node", source + "js/agent.js"}, []string{"node", source + "js/crosscheck.js"}},
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := 0, build()
	if err == nil {
		// The scenarios mostly wait.
		err = flag.Set("test.parallel", "8")
	}
	if err == nil {
		code = m.Run()
	}
	if err := os.RemoveAll(built); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func build() (err error) {
	if built, err = os.MkdirTemp("", "devices"); err != nil {
		return err
	}
	for _, program := range []string{"agent", "crosscheck"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(built, program), "mosquitto-bouncer/device/go/"+program).CombinedOutput()
		if err != nil {
			return fmt.Errorf("building %s: %w\n%s", program, err, out)
		}
	}
	return buildC()
}

// buildC builds the programs of the C library, with sanitizers.
func buildC() error {
	directory := filepath.Join(built, "c")
	for _, args := range [][]string{
		{"-S", source + "c", "-B", directory, "-DBOUNCER_TESTS=ON", "-DBOUNCER_SANITIZE=ON"},
		{"--build", directory, "--target", "agent", "crosscheck"},
	} {
		if out, err := exec.Command("cmake", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("building the programs of the C library: cmake %s: %w\n%s", args, err, out)
		}
	}
	return nil
}

// TestEveryLibrary: each library has its row.
func TestEveryLibrary(t *testing.T) {
	entries, err := os.ReadDir(source)
	if err != nil {
		t.Fatal(err)
	}
	var directories, rows []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != "vectors" {
			directories = append(directories, e.Name())
		}
	}
	for _, l := range libraries() {
		rows = append(rows, l.name)
	}
	slices.Sort(rows)
	if !slices.Equal(rows, directories) {
		t.Errorf("the libraries are %q, those that are tested %q", directories, rows)
	}
}
