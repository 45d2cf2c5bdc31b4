package main

import (
	"database/sql"
	"encoding/json"
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
		"\ufeff\ufeffsecret":            "the secret in standard input has a character that is not shown (U+FEFF); write it again, by hand if need be",
		"secret\u00a0":                  "the secret in standard input has a character that is not shown (U+00A0); write it again, by hand if need be",
		"secret\u2028\n":                "the secret in standard input has a character that is not shown (U+2028); write it again, by hand if need be",
		"sec\u3164ret":                  "the secret in standard input has a character that is not shown (U+3164); write it again, by hand if need be",
		"sec\u200bret":                  "the secret in standard input has a character that is not shown (U+200B); write it again, by hand if need be",
		" \t ":                          "the secret in standard input is of blanks alone, which is no secret; put the secret there",
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
		"id,secret\nx,\" \"\n":         "the secret in standard input:2 is of blanks alone",
		"id,secret\rx,one\ry,two\r":    "its lines end with CR alone",
		"#TYPE x\nid,secret\nx ,one\n": "standard input:3: \"x \" is not a device id",
		"i\x00d\x00,\x00s\x00":         "standard input: is UTF-16 without a byte order mark",
	} {
		if got := bouncerctl(t, content, deviceArgs(dir, "import", "-")...); got.code != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("%q: %d %s", content, got.code, got.stderr)
		}
	}
}

// TestBlanksAroundASecret: they are part of it, and that is said.
func TestBlanksAroundASecret(t *testing.T) {
	dir := newDir(t)
	file := filepath.Join(t.TempDir(), "secret")
	writeFile(t, file, "one \n")
	if got := device(t, dir, "add", "a", "--no-cert", "--secret-file", file); !strings.Contains(got, "begins or ends with a blank, which is part of it") || storedSecret(t, dir, "a") != "one " {
		t.Error(got)
	}
	writeFile(t, file, "id,secret\nb,one\nc, two\n")
	if got := device(t, dir, "import", file); strings.Count(got, "Note: the secret in ") != 1 || !strings.Contains(got, ":3 begins or ends with a blank") || storedSecret(t, dir, "c") != " two" {
		t.Error(got)
	}
}

// TestTimesThatAreNone lists every device whatever stands in created_at, and rotates it.
func TestTimesThatAreNone(t *testing.T) {
	dir := newDir(t)
	device(t, dir, "add", "good", "--no-cert")
	db, err := sql.Open("sqlite3", filepath.Join(dir, "devices.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	literals := []string{"1727712000123", "1727712000123456", "1727712000123456789", "1727712000.5", "'yesterday'", "'1727712000'", "-5", "-1727712000123",
		"1e300", "-1e300", "9e999", "X'00'", "253402300800", "9223372036854775807", "0"}
	for i, literal := range literals {
		if _, err := db.Exec("INSERT INTO devices VALUES ('odd_' || ?, 'secret', "+literal+")", i); err != nil {
			t.Fatalf("%s: %v", literal, err)
		}
	}
	if _, err := db.Exec("UPDATE device_details SET secret_since = 1e300, certificate_expires = 'never'; INSERT INTO device_details VALUES ('odd_0', 'x', 1e300)"); err != nil {
		t.Fatal(err)
	}
	var all []struct {
		ID        string  `json:"id"`
		CreatedAt *string `json:"created_at"`
	}
	if err := json.Unmarshal([]byte(device(t, dir, "list", "--json")), &all); err != nil || len(all) != len(literals)+1 {
		t.Fatal(len(all), err)
	}
	for _, d := range all {
		device(t, dir, "show", d.ID)
		device(t, dir, "rotate", d.ID, "--out", filepath.Join(t.TempDir(), "out"))
		var shown map[string]any
		if err := json.Unmarshal([]byte(device(t, dir, "show", d.ID, "--json")), &shown); err != nil {
			t.Error(d.ID, err)
		}
		if d.ID == "odd_0" && d.CreatedAt != nil {
			t.Error(*d.CreatedAt)
		}
	}
	for _, form := range []string{"--csv", "--json=false", "--expiring=30d"} {
		if got := strings.Count(device(t, dir, "list", form), "odd_"); got != len(literals) && form != "--expiring=30d" {
			t.Errorf("%s: %d", form, got)
		}
	}
}
