package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"mosquitto-bouncer/plugin/version"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newManual makes the command with which the distribution's manual pages are made. Its source is the commands
// themselves, and the documentation in docs/.
func newManual() *cobra.Command {
	var docs string
	c := &cobra.Command{
		Use:     "manual DIR",
		Short:   "Write the manual pages",
		Long:    `Write bouncerctl(1), bouncer.toml(5) and mosquitto_bouncer(8) into a directory.`,
		Example: `  bouncerctl manual --docs docs build/man`,
		Hidden:  true,
		Args:    oneFile,
		RunE: func(c *cobra.Command, args []string) error {
			pages, err := manual(c.Root(), docs)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			for name, page := range pages {
				if err := os.WriteFile(filepath.Join(args[0], name), page, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&docs, "docs", "docs", "the `directory` of the documentation")
	return c
}

// manual returns the manual pages by their file names.
func manual(root *cobra.Command, docs string) (map[string][]byte, error) {
	configuration, err := os.ReadFile(filepath.Join(docs, "configuration.md"))
	if err != nil {
		return nil, err
	}
	plugin, err := os.ReadFile(filepath.Join(docs, "mosquitto_bouncer.md"))
	if err != nil {
		return nil, err
	}
	_, settings, found := strings.Cut(string(configuration), "\n## bouncer.toml\n")
	if !found {
		return nil, fmt.Errorf("%s has no section bouncer.toml", filepath.Join(docs, "configuration.md"))
	}
	if end := strings.Index(settings, "\n## "); end >= 0 {
		settings = settings[:end]
	}
	_, plugged, _ := strings.Cut(string(plugin), "\n")
	return map[string][]byte{
		"bouncerctl.1": page("bouncerctl", 1, root.Short, strings.ReplaceAll(reference(root), "\n# bouncerctl\n", "\n")),
		"bouncer.toml.5": page("bouncer.toml", 5, "the settings of mosquitto-bouncer", "\n# DESCRIPTION\n"+
			strings.ReplaceAll(settings, "\n### ", "\n# ")+"\n# SEE ALSO\n\n**bouncerctl**(1), **mosquitto_bouncer**(8)\n"),
		"mosquitto_bouncer.8": page("mosquitto_bouncer", 8, "gate for signed messages of devices, a Mosquitto plugin",
			strings.ReplaceAll(plugged, "\n## ", "\n# ")),
	}, nil
}

// page makes a manual page of Markdown.
func page(name string, section int, short, body string) []byte {
	head := fmt.Sprintf("%% %s %d \"\" \"mosquitto-bouncer %s\" \"\"\n\n# NAME\n\n%s - %s\n", strings.ToUpper(name), section, version.Number, name, short)
	return append(bytes.TrimSpace(md2man.Render([]byte(head+withoutTables(body)))), '\n')
}

// withoutTables makes an item of each row of a Markdown table: the cells of a table in a manual page are not wrapped, and run
// past the edge of the terminal. A column's heading stands before the cell, but for what the cell itself says: its type and its meaning.
func withoutTables(body string) string {
	var b strings.Builder
	var headings []string // of the table that we are in
	for line := range strings.Lines(body) {
		row, found := strings.CutPrefix(line, "| ")
		if !found {
			headings = nil
			if !strings.HasPrefix(line, "<!--") {
				b.WriteString(line)
			}
			continue
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimSpace(row), "|"), " | ")
		if headings == nil {
			headings = cells
			continue
		}
		if strings.Trim(row, "-| \n") == "" {
			continue
		}
		var said []string
		for i, cell := range cells[1:] {
			heading := ""
			if i+1 < len(headings) {
				heading = strings.TrimSpace(headings[i+1])
			}
			if strings.HasPrefix(heading, "type") || heading == "meaning" {
				heading = ""
			}
			if cell = strings.TrimSpace(cell); cell != "" {
				said = append(said, strings.TrimSpace(heading+" "+cell))
			}
		}
		fmt.Fprintf(&b, "- %s: %s\n", strings.TrimSpace(cells[0]), strings.Join(said, "; "))
	}
	return b.String()
}

// reference returns all commands in Markdown.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("\n# bouncerctl\n\n")
	describe(&b, root)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Hidden || sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			fmt.Fprintf(&b, "\n## %s\n\n", sub.CommandPath())
			describe(&b, sub)
			walk(sub)
		}
	}
	walk(root)
	return b.String()
}

func describe(b *strings.Builder, c *cobra.Command) {
	if !c.HasSubCommands() {
		fmt.Fprintf(b, "    %s\n\n", c.UseLine())
	}
	b.WriteString(strings.TrimSpace(c.Long) + "\n")
	if flags := flagTable(c.LocalNonPersistentFlags()); flags != "" {
		b.WriteString("\n" + flags)
	}
	if flags := flagTable(c.PersistentFlags()); flags != "" {
		b.WriteString("\nFor all of its commands:\n\n" + flags)
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n")
		for line := range strings.Lines(c.Example) {
			b.WriteString("  " + line)
		}
		b.WriteString("\n")
	}
}

func flagTable(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		name, text := pflag.UnquoteUsage(f)
		shown := "--" + f.Name
		if name != "" {
			shown += " " + strings.ToUpper(name)
		}
		fmt.Fprintf(&b, "- `%s`: %s", shown, strings.TrimSpace(strings.ReplaceAll(text, "\n", " ")))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" && !strings.Contains(text, "default") {
			fmt.Fprintf(&b, " (default `%s`)", f.DefValue)
		}
		b.WriteString("\n")
	})
	return b.String()
}
