package diagnose

import (
	"math"
	"strconv"
	"strings"
)

func isFloat(raw string) bool { return strings.ContainsAny(raw, ".eE") }

// shortest writes 22.0 as 22, as JavaScript and Go do.
func shortest(raw string) string {
	f, err := strconv.ParseFloat(raw, 64)
	if err != nil || !isFloat(raw) {
		return raw
	}
	if f == math.Trunc(f) && math.Abs(f) < 1e21 {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return strings.Replace(strings.Replace(strconv.FormatFloat(f, 'g', -1, 64), "e-0", "e-", 1), "e+0", "e+", 1)
}

// rounded writes numbers that are not exact in 64-bit floating point as JavaScript does.
func rounded(raw string) string {
	f, err := strconv.ParseFloat(raw, 64)
	if err != nil || math.Abs(f) >= 1e21 {
		return raw
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// single writes numbers that went through a 32-bit float, as a program with 64-bit ones writes them.
func single(raw string) string {
	f, err := strconv.ParseFloat(raw, 32)
	if err != nil || !isFloat(raw) {
		return raw
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// withFraction writes 22 as 22.0.
func withFraction(raw string) string {
	if isFloat(raw) {
		if text := shortest(raw); isFloat(text) {
			return text
		}
		return shortest(raw) + ".0"
	}
	return raw + ".0"
}

// pythonFloat writes what has a fraction or an exponent as Python does.
func pythonFloat(raw string) string {
	if !isFloat(raw) {
		return raw
	}
	return withFraction(raw)
}

// decimals writes fractions with so many digits, as C's printf does; integers too if all.
func decimals(digits int, all bool) func(string) string {
	return func(raw string) string {
		f, err := strconv.ParseFloat(raw, 64)
		if err != nil || !all && !isFloat(raw) {
			return raw
		}
		return strconv.FormatFloat(f, 'f', digits, 64)
	}
}

// general writes fractions as C's %g does.
func general(raw string) string {
	f, err := strconv.ParseFloat(raw, 64)
	if err != nil || !isFloat(raw) {
		return raw
	}
	text := strconv.FormatFloat(f, 'g', 6, 64)
	if head, _, scientific := strings.Cut(text, "e"); scientific || !strings.Contains(head, ".") {
		return text
	}
	return strings.TrimRight(strings.TrimRight(text, "0"), ".")
}
