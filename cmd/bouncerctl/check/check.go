package check

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"mosquitto-bouncer/cmd/bouncerctl/files"
	"mosquitto-bouncer/plugin/brokerconf"
	"mosquitto-bouncer/plugin/config"
)

// Options say what to check against.
type Options struct {
	Now     time.Time
	Hosts   []string       // names and addresses for which the server's certificate must be
	Version string         // of the broker, as ValidVersion has it; "": not known
	Broker  *files.Account // whom the broker becomes; nil: it is us
	Plugin  string         // the plugin's file, and
	Config  string         // the bouncer.toml, for the lines that are proposed
}

// A Finding is a mistake in a configuration.
type Finding struct {
	Where string // "FILE:LINE" or "FILE"
	Error bool   // else a warning
	Text  string // what is wrong; and after a semicolon, what to do
}

// A Report is what a check came to.
type Report struct {
	Files    []string  // what was checked
	Findings []Finding // in the order of Files and of their lines, each once
}

// Errors returns how many of the findings are errors.
func (r *Report) Errors() (n int) {
	for _, f := range r.Findings {
		if f.Error {
			n++
		}
	}
	return n
}

// Run checks a bouncer.toml and a mosquitto.conf; either may be "". Without a bouncer.toml, the one is checked that the
// mosquitto.conf names.
func Run(toml, conf string, o Options) *Report {
	k := checker{Options: o}
	k.check(toml, conf)
	return k.report()
}

// A checker collects findings.
type checker struct {
	Options
	findings []Finding
	files    []string // what was checked

	conf *brokerconf.Config
	toml *config.Config
}

func (k *checker) error(where, format string, args ...any) {
	k.findings = append(k.findings, Finding{where, true, fmt.Sprintf(format, args...)})
}

func (k *checker) warn(where, format string, args ...any) {
	k.findings = append(k.findings, Finding{where, false, fmt.Sprintf(format, args...)})
}

func at(l brokerconf.Line) string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

func (k *checker) check(toml, conf string) {
	if conf != "" {
		var err error
		if k.conf, err = brokerconf.ReadFile(conf); err != nil {
			where, text := conf, strings.TrimPrefix(strings.TrimPrefix(err.Error(), "broker configuration: "), conf+": ")
			if m := placedForm.FindStringSubmatch(text); m != nil {
				where, text = m[1], m[2]
			}
			k.files = append(k.files, conf)
			k.error(where, "%s; correct the path, or run this as a user who may read it", text)
		} else {
			k.files = append(k.files, k.conf.Files...)
			if named := k.plugin(); toml == "" {
				toml = named
			}
		}
	}
	if toml != "" {
		k.checkTOML(toml)
	}
	if k.conf != nil {
		k.checkBroker()
		k.checkListeners()
		k.checkTogether()
		k.checkIdentity()
		k.checkAccess()
	}
	k.checkMarks(conf)
}

// report sorts the findings, and leaves out what several listeners have in common.
func (k *checker) report() *Report {
	slices.SortStableFunc(k.findings, func(a, b Finding) int {
		fileA, lineA := place(a.Where)
		fileB, lineB := place(b.Where)
		return cmp.Or(slices.Index(k.files, fileA)-slices.Index(k.files, fileB), lineA-lineB)
	})
	return &Report{k.files, slices.Compact(k.findings)}
}

// placedForm is an error that begins with its place.
var placedForm = regexp.MustCompile(`\A(\S.*?:\d+): (.*)\z`)

var placeForm = regexp.MustCompile(`\A(.*?)(?::(\d+))?\z`)

// place takes the file and the line, 0 if there is none, from where a finding is.
func place(where string) (file string, line int) {
	m := placeForm.FindStringSubmatch(where)
	return m[1], number(m[2])
}
