package version

import (
	"os"
	"strings"
	"testing"
)

// TestPackage: the Debian packages, whose version scripts/deb takes from the changelog, have the version of what is in them.
func TestPackage(t *testing.T) {
	changelog, err := os.ReadFile("../../debian/changelog")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(changelog), "\n")
	_, of, _ := strings.Cut(first, "(")
	if of, _, _ = strings.Cut(of, ")"); of != Number {
		t.Errorf("debian/changelog begins with version %q, the software is %s", of, Number)
	}
}
