package check

import (
	"os/exec"
	"regexp"
	"slices"
	"strconv"
)

// before tells whether the broker is older than a version. One that is not known is taken for 2.0.11.
func (k *checker) before(major, minor, patch int) bool {
	v := k.Version
	if v == "" {
		v = "2.0.11"
	}
	m := versionForm.FindStringSubmatch(v)
	return slices.Compare([]int{number(m[1]), number(m[2]), number(m[3])}, []int{major, minor, patch}) < 0
}

func number(digits string) int {
	n, _ := strconv.Atoi(digits)
	return n
}

// ValidVersion reports whether a broker's version is of the form 2.0.11.
func ValidVersion(version string) bool { return versionForm.MatchString(version) }

var versionForm = regexp.MustCompile(`\A(\d+)\.(\d+)\.(\d+)\z`)

// InstalledBroker asks the broker that is installed for its version; "" if there is none that answers.
func InstalledBroker() string {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // not in every user's PATH
	}
	output, _ := exec.Command(path, "-h").Output() // exits with 3
	if m := regexp.MustCompile(`(?m)^mosquitto version (\d+\.\d+\.\d+)`).FindSubmatch(output); m != nil {
		return string(m[1])
	}
	return ""
}
