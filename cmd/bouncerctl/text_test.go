package main

import (
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

// inUTF16 returns a text as PowerShell's ">" writes it.
func inUTF16(text string) string {
	var b strings.Builder
	b.WriteString("\xff\xfe")
	for _, u := range utf16.Encode([]rune(text)) {
		b.WriteByte(byte(u))
		b.WriteByte(byte(u >> 8))
	}
	return b.String()
}

// TestTextAsWindowsWritesIt registers the secrets that the files show, or none.
func TestTextAsWindowsWritesIt(t *testing.T) {
	dir := newDir(t)
	for id, content := range map[string]string{
		"mark": "\ufeffs3cret ä\r\n", "utf16": inUTF16("s3cret ä\r\n"), "plain": "s3cret ä", "lf": "s3cret ä\n",
	} {
		file := filepath.Join(t.TempDir(), "secret")
		writeFile(t, file, content)
		device(t, dir, "add", id, "--no-cert", "--secret-file", file)
		if got := storedSecret(t, dir, id); got != "s3cret ä" {
			t.Errorf("%s: %q", id, got)
		}
		device(t, dir, "rotate", id, "--now", "--secret-file", file, "--out", filepath.Join(t.TempDir(), "out"))
	}
	for content, want := range map[string]string{
		"\xff\xfe\x00\x00a\x00\x00\x00": "--secret-file: what is in standard input is UTF-32; save it as UTF-8",
		inUTF16("secret")[2:]:           "--secret-file: what is in standard input is UTF-16 without a byte order mark; save it as UTF-8",
		inUTF16("secret") + "x":         "--secret-file: what is in standard input begins as UTF-16 and is not all of it; save it as UTF-8",
		"\ufeff\ufeffsecret":            "the secret in standard input has an invisible character (U+FEFF); write it again, by hand if necessary",
		"secret\u00a0":                  "the secret in standard input has an invisible character (U+00A0); write it again, by hand if necessary",
		"secret\u2028\n":                "the secret in standard input has an invisible character (U+2028); write it again, by hand if necessary",
		"sec\u3164ret":                  "the secret in standard input has an invisible character (U+3164); write it again, by hand if necessary",
		"sec\u200bret":                  "the secret in standard input has an invisible character (U+200B); write it again, by hand if necessary",
		" \t ":                          "the secret in standard input consists of blanks only; put the secret there",
		"\x00\x00\x00":                  "the secret in standard input is not one line of text; write its bytes as hexadecimal digits, and sign with those",
	} {
		for _, command := range [][]string{{"add", "other", "--no-cert"}, {"rotate", "plain"}} {
			failReading(t, content, 1, want, deviceArgs(dir, command[0], append(command[1:], "--secret-file", "-")...)...)
		}
	}
	for name, content := range map[string]string{
		"a": "\ufeff\"id\",\"secret\"\r\n\"a1\",\"one\"\r\n",
		"b": inUTF16("\"id\",\"secret\"\r\n\"b1\",\"one\"\r\n"),
		"c": "id,secret\nc1,one\n",
		"d": "#TYPE System.Management.Automation.PSCustomObject\r\n\"Id\",\"Secret\"\r\n\"d1\",\"one\"\r\n",
		"e": "\ufeffsecret;id\r\none;e1\r\n",
		"f": inUTF16("ID\tSHARED_SECRET\r\nf1\tone\r\n"),
	} {
		file := filepath.Join(t.TempDir(), "fleet.csv")
		writeFile(t, file, content)
		device(t, dir, "import", file)
		if got := storedSecret(t, dir, name+"1"); got != "one" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for content, want := range map[string]string{
		"id,secret\nx,\"\x00\x00\"\n":  "the secret in standard input:2 is not one line of text",
		"id,secret\nx,\" \"\n":         "the secret in standard input:2 consists of blanks only",
		"id,secret\rx,one\ry,two\r":    "its lines end with only CR",
		"#TYPE x\nid,secret\nx ,one\n": "standard input:3: \"x \" is not a device id",
		"i\x00d\x00,\x00s\x00":         "standard input: is UTF-16 without a byte order mark",
	} {
		if got := bouncerctl(t, content, deviceArgs(dir, "import", "-")...); got.code != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("%q: %d %s", content, got.code, got.stderr)
		}
	}
}
