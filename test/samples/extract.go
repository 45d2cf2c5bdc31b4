// Package samples holds the documentation to what it shows: every block of code in README.md and docs/*.md is found, told
// apart by its language, and read, compiled or run. A block that none of this fits is marked in the Markdown by a comment,
// which readers do not see, with the reason:
//
//	<!-- sample: none, a diagram -->
//
// <!-- sample: NAME --> before a block names the test that runs it, where its language alone does not say how.
package samples

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A block is one code block of a document.
type block struct {
	file string
	line int    // of its first line of code
	mark string // what the comment before it says; "": there is none
	info string // what a fence names; "": nothing, or the block is indented
	code string // without indentation, ends with a line feed
}

var (
	markForm  = regexp.MustCompile(`^\s*<!-- sample: (.*?) -->\s*$`)
	fenceForm = regexp.MustCompile("^(\\s*)(```+)\\s*(\\S*)")
	itemForm  = regexp.MustCompile(`^(\s*)(?:[-*+]|\d+[.)])(\s+)\S`)
)

// documents returns the Markdown files of the documentation, below root.
func documents(root string) ([]string, error) {
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	return append([]string{filepath.Join(root, "README.md")}, docs...), err
}

// extract returns the code blocks of a document, fenced and indented.
func extract(file string) ([]block, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var blocks []block
	lines := strings.Split(string(content), "\n")
	mark, blank, text := "", true, 0 // text is where the text of the list item begins
	for i := 0; i < len(lines); {
		line := lines[i]
		if strings.TrimSpace(line) != "" && indent(line) < text && (blank || fenceForm.MatchString(line)) {
			text = 0 // the list has ended
		}
		switch m := fenceForm.FindStringSubmatch(line); {
		case m != nil:
			end := i + 1
			for end < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[end]), m[2]) {
				end++
			}
			blocks = append(blocks, block{file, i + 2, mark, m[3], unindent(lines[i+1:min(end, len(lines))], len(m[1]))})
			i, mark, blank = end+1, "", true
			continue
		case markForm.MatchString(line):
			mark, blank = markForm.FindStringSubmatch(line)[1], true
		case strings.TrimSpace(line) == "":
			blank = true
		case blank && indent(line) >= text+4:
			end, last := i, i
			for ; end < len(lines) && (strings.TrimSpace(lines[end]) == "" || indent(lines[end]) >= text+4); end++ {
				if strings.TrimSpace(lines[end]) != "" {
					last = end
				}
			}
			blocks = append(blocks, block{file, i + 1, mark, "", unindent(lines[i:last+1], text+4)})
			i, mark, blank = last+1, "", false
			continue
		default:
			if item := itemForm.FindStringSubmatch(line); item != nil {
				text = len(item[1]) + len(strings.TrimSpace(line[:len(item[0])-1])) + len(item[2])
			}
			blank, mark = false, ""
		}
		i++
	}
	return blocks, nil
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

func unindent(lines []string, by int) string {
	var code strings.Builder
	for _, line := range lines {
		code.WriteString(line[min(by, indent(line)):] + "\n")
	}
	return code.String()
}

// The languages of blocks.
const (
	langC         = "c"
	langPython    = "python"
	langShell     = "sh"
	langGo        = "go"
	langJSON      = "json"
	langTOML      = "toml"
	langMosquitto = "mosquitto.conf"
	langACL       = "acl"
	langSQL       = "sql"
	langLog       = "log" // lines of the broker's log
	langUnknown   = ""
)

var (
	commandForm   = regexp.MustCompile(`^(?:sudo |make |bouncerctl |bouncer-sim |curl |docker |scripts/|mosquitto|openssl |printf |echo |head |install |[a-z]+=)`)
	mosquittoForm = regexp.MustCompile(`^(?:listener|plugin|plugin_\w+|per_listener_settings|set_tcp_nodelay|use_\w+|tls_version|certfile|keyfile|crlfile|password_file|log_\w+|include_dir|bind_\w+|require_certificate|check_retain_source|max_\w+|acl_file|cafile|allow_\w+|global_plugin|connection|bridge_\w+|persistence\w*|#.*)(?: |$)`)
	aclForm       = regexp.MustCompile(`^(?:user \S+|(?:topic|pattern) (?:(?:read|write|readwrite|deny) )?\S+)$`)
	logForm       = regexp.MustCompile(`^(?:\d+: )?bouncer: \S`)
	tomlForm      = regexp.MustCompile(`^(?:\[[a-z_]+\]|[a-z_]+\s*= .*)$`)
)

// language tells what a block is written in.
func (b *block) language() string {
	switch b.info {
	case langC, langPython, langGo, langJSON, langTOML, langSQL:
		return b.info
	case "sh", "bash", "shell", "console":
		return langShell
	case "":
	default:
		return b.info
	}
	first, _, _ := strings.Cut(b.code, "\n")
	all := func(form *regexp.Regexp) bool {
		for line := range strings.Lines(b.code) {
			if line = strings.TrimRight(line, " \n"); line != "" && !form.MatchString(line) {
				return false
			}
		}
		return true
	}
	switch {
	case strings.HasPrefix(first, "{"):
		return langJSON
	case strings.HasPrefix(first, "CREATE TABLE"):
		return langSQL
	case all(logForm):
		return langLog
	case all(aclForm):
		return langACL
	case all(mosquittoForm):
		return langMosquitto
	case tomlForm.MatchString(first) && (strings.HasPrefix(first, "[") || strings.Contains(first, " = ")):
		return langTOML
	case commandForm.MatchString(first):
		return langShell
	}
	return langUnknown
}
