// Package version is the one place of this software's version.
package version

// Number is the version of the plugin and of the commands, and of their package: see debian/changelog.
const Number = "0.1.0"
