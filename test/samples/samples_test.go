package samples

import (
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
)

const root = "../.."

// TestSamples: every code block of the documentation is what its language allows, and those that can be run do what the
// text says. One that this test knows nothing to do with is to be marked, with the reason.
func TestSamples(t *testing.T) {
	files, err := documents(root)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, file := range files {
		blocks, err := extract(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks {
			name := strings.TrimPrefix(b.file, root+"/")
			t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
				where := func() { t.Errorf("%s:%d, marked %q:\n%s", name, b.line, b.mark, b.code) }
				if reason, none := strings.CutPrefix(b.mark, "none"); none {
					if len(strings.Trim(reason, ", ")) < 5 {
						t.Errorf("%s:%d is marked to be left out, without a reason", name, b.line)
					}
					return
				}
				if b.mark != "" {
					run, known := named[b.mark]
					if !known {
						t.Errorf("%s:%d: there is no test %q of samples", name, b.line, b.mark)
						return
					}
					used[b.mark] = true
					if run(t, b.code); t.Failed() {
						where()
					}
					return
				}
				read, known := readers[b.language()]
				if !known {
					t.Errorf("%s:%d: no language is known for this block, or none of its own test: put <!-- sample: none, REASON --> before it, or <!-- sample: NAME --> and a test in test/samples", name, b.line)
				} else if err := read(t, b.code); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					where()
				}
			})
		}
	}
	for name := range named {
		if !used[name] {
			t.Errorf("the documentation has no sample %q any more, which has a test", name)
		}
	}
}

// readers hold a block to its language. C, Python and Go are not here: their blocks need a test of their own.
var readers = map[string]func(*testing.T, string) error{
	langJSON: func(_ *testing.T, code string) error {
		d := json.NewDecoder(strings.NewReader(code))
		for d.More() {
			var v any
			if err := d.Decode(&v); err != nil {
				return err
			}
		}
		return nil
	},
	langTOML:      readTOML,
	langMosquitto: readMosquitto,
	langShell:     readShell,
	langACL:       func(*testing.T, string) error { return nil }, // its form is what tells it apart
	langLog:       func(*testing.T, string) error { return nil },
	langSQL: func(_ *testing.T, code string) error {
		db, err := sql.Open("sqlite3", ":memory:")
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.Exec(code)
		return err
	},
}

// readTOML has the plugin's own reader read settings. That files which they name are not here is no fault of theirs.
func readTOML(t *testing.T, code string) error {
	file := filepath.Join(t.TempDir(), "bouncer.toml")
	if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
		return err
	}
	_, err := config.Load(file)
	problems, ok := errors.AsType[*config.Error](err)
	if !ok {
		return err
	}
	for _, p := range problems.Problems {
		if !strings.Contains(p.Text, "no such file or directory") {
			t.Errorf("%s", p)
		}
	}
	return nil
}

// readMosquitto reads a part of mosquitto.conf as the plugin does.
func readMosquitto(t *testing.T, code string) error {
	file := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
		return err
	}
	_, err := brokerconf.ReadFile(file)
	for line := range strings.Lines(code) {
		if line = strings.TrimSuffix(line, "\n"); strings.TrimRight(line, " \t") != line || strings.Contains(line, " #") {
			t.Errorf("the broker would take blanks and comments behind a value for a part of it: %q", line)
		}
	}
	return err
}

// readShell has a shell read commands, and bouncerctl its arguments. "[flags]" and words in upper case stand for others.
func readShell(t *testing.T, code string) error {
	if strings.Contains(code, " [flags]") || strings.Contains(code, " [command]") {
		return nil // a synopsis, which bouncerctl has made itself
	}
	if output, err := shell(t.TempDir(), "-n", code).CombinedOutput(); err != nil {
		return errors.New(string(output))
	}
	for line := range strings.Lines(strings.ReplaceAll(code, "\\\n", " ")) {
		words := strings.Fields(line)
		if len(words) > 0 && words[0] == "sudo" {
			words = words[1:]
		}
		if len(words) < 2 || words[0] != "bouncerctl" {
			continue
		}
		if err := bouncerctlHas(t, words[1:]); err != nil {
			return err
		}
	}
	return nil
}

// bouncerctlHas asks the program for the help of a command, with the flags that stand behind it: what it does not know it
// refuses.
func bouncerctlHas(t *testing.T, words []string) error {
	t.Helper()
	args := []string{"help"}
	var flags []string
loop:
	for _, word := range words {
		switch {
		case strings.ContainsAny(word, "|<>;&#"): // the command ends here
			break loop
		case strings.HasPrefix(word, "--"):
			name, _, _ := strings.Cut(word, "=")
			flags = append(flags, name)
		case len(flags) == 0 && len(args) < 3 && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz-") == "":
			args = append(args, word)
		}
	}
	help, err := exec.Command(bouncerctl(t), args...).CombinedOutput()
	if err != nil || strings.Contains(string(help), "Unknown help topic") {
		return errors.New("bouncerctl " + strings.Join(args, " ") + ": " + string(help))
	}
	for _, flag := range flags {
		if !strings.Contains(string(help), flag+" ") && !strings.Contains(string(help), flag+"\n") {
			return errors.New("bouncerctl " + strings.Join(args[1:], " ") + " has no flag " + flag)
		}
	}
	return nil
}

func bouncerctl(t *testing.T) string {
	t.Helper()
	path := os.Getenv("BOUNCERCTL")
	if path == "" {
		path = filepath.Join(root, "build", "bouncerctl")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run make build", err)
	}
	return path
}

// shell is a shell with a script, in a directory.
func shell(dir, option, script string) *exec.Cmd {
	c := exec.Command("bash", option, "-s")
	c.Dir = dir
	c.Stdin = strings.NewReader(script)
	return c
}

// TestExtract: fenced and indented blocks, in lists too, and what is none.
func TestExtract(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.md")
	const text = "Text\n    continued, no code\n\n    code 1\n\n    more\n\nText\n\n1. Item\n\n   its text\n\n       code 2\n\n- Item\n  continued\n\n  text\n\n      code 3\n\n" +
		"<!-- sample: name -->\n```c\ncode 4\n```\n\n<!-- sample: none, why -->\n\n    code 5\n\nText\n    no code\n```\ncode 6\n```\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks, err := extract(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []block{
		{file, 4, "", "", "code 1\n\nmore\n"}, {file, 14, "", "", "code 2\n"}, {file, 21, "", "", "code 3\n"},
		{file, 25, "name", "c", "code 4\n"}, {file, 30, "none, why", "", "code 5\n"}, {file, 35, "", "", "code 6\n"},
	}
	if len(blocks) != len(want) {
		t.Fatalf("%d blocks: %+v", len(blocks), blocks)
	}
	for i := range want {
		if blocks[i] != want[i] {
			t.Errorf("%+v, want %+v", blocks[i], want[i])
		}
	}
}

// TestNoSecretOnACommandLine: nothing that tells people what to type has them put a secret or a token where ps shows it.
func TestNoSecretOnACommandLine(t *testing.T) {
	secret := regexp.MustCompile(`-hmac\s|-macopt\s|(?:-H|--header)[ =]\S*Authorization|--oauth2-bearer\s|-u\s+\S+:\S+\s.*http|(?:^|[^$])\$\(cat [^)]*(?:secret|token|key)\)"? *\\?\n? *(?:mosquitto|curl|openssl)`)
	var files []string
	for _, pattern := range []string{"README.md", "docs/*", "device/*.md", "device/*/*.md", "cmd/bouncerctl/*.go", "cmd/bouncerctl/*/*.go", "cmd/bouncerctl/*/*.tmpl", "cmd/bouncer-sim/*.go", "scripts/*", "*.example", "docker-compose.yml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.IsDir() || strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := secret.Find(content); found != nil {
			t.Errorf("%s: %q", file, found)
		}
	}
	if !secret.MatchString(`openssl dgst -sha256 -hmac "$(cat secret)"`) || !secret.MatchString(`curl -H "Authorization: Bearer $TOKEN"`) {
		t.Error("a secret on a command line is not found")
	}
}
