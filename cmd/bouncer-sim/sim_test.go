package main

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCheckPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`^port %d, for the broker, is in use by %s \(process %d\); stop it or choose another port: make run PORT=\d+$`,
		port, regexp.QuoteMeta(strings.TrimSpace(string(name))), os.Getpid())
	for _, host := range []string{"", "127.0.0.1"} {
		err := checkPort(host, port, "broker", "make run PORT=")
		if err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
			t.Errorf("host %q: error %v, want one like %s", host, err, want)
		}
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := checkPort("127.0.0.1", port, "broker", "make run PORT="); err != nil {
		t.Error(err)
	}
}

func TestNoLineBeyondWidth(t *testing.T) {
	var out strings.Builder
	s := &screen{w: &out}
	tour := &tour{screen: s}
	long := strings.Repeat("Zürich ", 30)
	s.field("payload", red, long)
	tour.results = []result{{1, "22 changed to 99 under the old signature", "refused: identity_mismatch", long}}
	tour.summary()
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestColour(t *testing.T) {
	for _, colour := range []bool{false, true} {
		var out strings.Builder
		s := &screen{w: &out, colour: colour}
		s.field("verdict", green, "accepted")
		if got := strings.Contains(out.String(), "\x1b"); got != colour {
			t.Errorf("colour %t: %q", colour, out.String())
		}
	}
	if s := newScreen(os.NewFile(^uintptr(0), "closed")); s.colour {
		t.Error("colour on what is no terminal")
	}
}

func TestFailure(t *testing.T) {
	good, bad := result{1, "", accepted, accepted}, result{2, "", "refused: replay", accepted}
	for _, test := range []struct {
		results []result
		want    string
	}{
		{[]result{good}, "<nil>"},
		{[]result{good, bad, bad}, "2 of 3 outcomes are not as they should be"},
	} {
		if got := fmt.Sprint((&tour{results: test.results}).failure()); got != test.want {
			t.Errorf("%v: %s, want %s", test.results, got, test.want)
		}
	}
}
