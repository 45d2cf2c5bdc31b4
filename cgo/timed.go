//go:build timed

package main

// The tag makes a library for measurements: it times every callback and says in the log, at the stop, how long they
// took.

// #cgo CFLAGS: -DBOUNCER_TIMED
import "C"
