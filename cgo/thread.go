//go:build faultinject

package main

// Libraries for tests check the thread at every call of the broker's functions: see thread.h.

// #cgo CFLAGS: -DBOUNCER_CHECK_THREAD
import "C"
