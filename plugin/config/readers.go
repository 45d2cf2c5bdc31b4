package config

import (
	"mosquitto-bouncer/plugin/backendurl"

	"errors"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// text reads a string. ok is false if it is absent or not a string.
func (d *document) text(key, example string) (s string, ok bool) {
	v, set := d.lookup(key)
	if !set {
		return "", false
	}
	s, ok = v.(string)
	switch {
	case !ok:
		d.problem(key, "is %s; write text in quotes, for example %q", kindOf(v), example)
	case strings.ContainsFunc(s, unicode.IsControl):
		d.problem(key, "%s has a control character; write one line of text, for example %q", quote(s), example)
		return "", false
	}
	return s, ok
}

// path reads the path of a file or directory and makes it absolute.
func (d *document) path(key, byDefault string) string {
	s, ok := d.text(key, byDefault)
	if !ok {
		return byDefault
	}
	if s == "" {
		d.problem(key, "is empty; give a path, or remove the line for %q", byDefault)
		return byDefault
	}
	return d.absolute(s)
}

func (d *document) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(d.dir, path)
}

// duration reads a duration such as "5m" from least to most.
func (d *document) duration(key string, byDefault, least, most time.Duration) time.Duration {
	v, set := d.lookup(key)
	if !set {
		return byDefault
	}
	s, ok := v.(string)
	if !ok {
		d.problem(key, "is %s; write a duration in quotes, for example %q", kindOf(v), Short(byDefault))
		return byDefault
	}
	t, err := time.ParseDuration(s)
	if err != nil {
		d.problem(key, "%s is not a duration; write a number and a unit (ms, s, m, h), for example %q", quote(s), Short(byDefault))
		return byDefault
	}
	if t < least || t > most {
		d.problem(key, "%s is out of range; use %s to %s, for example %q", quote(s), Short(least), Short(most), Short(byDefault))
		return byDefault
	}
	return t
}

// Short formats a duration without the zero units of String.
func Short(t time.Duration) string {
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// integer reads an integer from least to most.
func (d *document) integer(key string, byDefault, least, most int64) int64 {
	v, set := d.lookup(key)
	if !set {
		return byDefault
	}
	n, ok := v.(int64)
	if !ok {
		d.problem(key, "is %s; write an integer from %d to %d", kindOf(v), least, most)
		return byDefault
	}
	if n < least || n > most {
		d.problem(key, "%d is out of range; use %d to %d", n, least, most)
		return byDefault
	}
	return n
}

// number reads an integer or a fraction from least to most.
func (d *document) number(key string, byDefault, least, most float64) float64 {
	v, set := d.lookup(key)
	if !set {
		return byDefault
	}
	var n float64
	switch v := v.(type) {
	case int64:
		n = float64(v)
	case float64:
		n = v
	default:
		d.problem(key, "is %s; write a number from %s to %s", kindOf(v), plain(least), plain(most))
		return byDefault
	}
	if !(n >= least && n <= most) { // so that nan is out of range too
		d.problem(key, "%v is out of range; use %s to %s", n, plain(least), plain(most))
		return byDefault
	}
	return n
}

// plain writes a number without an exponent.
func plain(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// oneSecond is how many whole events a rate allows in a second, at least one.
func oneSecond(rate float64) int {
	return max(1, int(math.Ceil(rate)))
}

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"B", 1},
}

// size reads a number of bytes: an integer, or text such as "1GiB" or "500MB".
func (d *document) size(key string, byDefault, least, most int64) int64 {
	const how = `an integer of bytes or a size such as "64KiB", "500MB" or "1GiB"`
	v, set := d.lookup(key)
	if !set {
		return byDefault
	}
	var n int64
	switch v := v.(type) {
	case int64:
		n = v
	case string:
		var err error
		if n, err = parseSize(v); err != nil {
			d.problem(key, "%s is not a size; write %s", quote(v), how)
			return byDefault
		}
	default:
		d.problem(key, "is %s; write %s", kindOf(v), how)
		return byDefault
	}
	if n < least || n > most {
		d.problem(key, "%d bytes is out of range; use %d to %d", n, least, most)
		return byDefault
	}
	return n
}

// parseSize parses decimal digits, an optional space and an optional unit.
// What overflows is the largest int64.
func parseSize(s string) (int64, error) {
	factor := int64(1)
	for _, unit := range sizeUnits {
		if digits, ok := strings.CutSuffix(s, unit.suffix); ok {
			s, factor = strings.TrimSuffix(digits, " "), unit.bytes
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return math.MaxInt64, nil
	case err != nil:
		return 0, err
	case n > uint64(math.MaxInt64/factor):
		return math.MaxInt64, nil
	}
	return int64(n) * factor, nil
}

// choice reads one of several words, of which the first is the default.
func (d *document) choice(key string, words ...string) string {
	v, set := d.lookup(key)
	if !set {
		return words[0]
	}
	s, ok := v.(string)
	if !ok || !slices.Contains(words, s) {
		got := kindOf(v)
		if ok {
			got = quote(s)
		}
		d.problem(key, "is %s; use one of \"%s\"", got, strings.Join(words, `", "`))
		return words[0]
	}
	return s
}

// url reads the backend's URL; secure means https. With a problem it is "".
func (d *document) url(key, byDefault string) (address string, secure bool) {
	s, ok := d.text(key, byDefault)
	if !ok {
		_, set := d.lookup(key)
		if set {
			return "", false
		}
		s = byDefault
	}
	u, err := backendurl.Parse(s)
	if err != nil {
		d.problem(key, "%s", err)
		return "", false
	}
	return s, u.Secure()
}

// listen reads an optional host:port.
func (d *document) listen(key string) string {
	const example = "127.0.0.1:8080"
	s, ok := d.text(key, example)
	if !ok || s == "" {
		return ""
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		d.problem(key, "%s is not host:port; write for example %q", quote(s), example)
		return ""
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		d.problem(key, "%s has port %q; use 1 to 65535, for example %q", quote(s), port, example)
		return ""
	}
	return s
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

// boolean reads true or false.
func (d *document) boolean(key string, byDefault bool) bool {
	v, set := d.lookup(key)
	if !set {
		return byDefault
	}
	b, ok := v.(bool)
	if !ok {
		d.problem(key, "is %s; write true or false", kindOf(v))
		return byDefault
	}
	return b
}

// kindOf names the type of a TOML value.
func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "text"
	case int64:
		return "an integer"
	case float64:
		return "a fraction"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case map[string]any:
		return "a section"
	default:
		return "a date or time"
	}
}
