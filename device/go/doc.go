// Package device is the software of a device: see ../README.md.
package device
