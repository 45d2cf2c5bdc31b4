// Package main is the shared library that the broker loads. It translates between the broker's C structures and
// plugin.Gateway, and holds nothing worth testing without a broker.
package main

/*
#cgo CFLAGS: -std=c11 -Wall -Wextra -Wno-unused-parameter -Werror
#cgo LDFLAGS: -lcrypto -Wl,-unresolved-symbols=ignore-all
#include <stdlib.h>
#include <mosquitto.h>
#include "plugin.h"
*/
import "C"

import (
	"fmt"
	"log/slog"
	"strings"
	"unsafe"

	"mosquitto-bouncer/plugin"
	"mosquitto-bouncer/plugin/downlink"
)

// gateway is the one instance in this process. Only the broker's thread touches it.
var gateway *plugin.Gateway

// main is never called: the broker calls the exported functions.
func main() {}

//export bouncer_start
func bouncer_start(configFile *C.char) (ok C.int) {
	defer deny("start", &ok)
	if gateway != nil {
		broker{}.Log(slog.LevelError, "the plugin is loaded twice; remove one of the plugin lines")
		return 0
	}
	g, err := plugin.Start(C.GoString(configFile), broker{})
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			broker{}.Log(slog.LevelError, strings.TrimSpace(line))
		}
		return 0
	}
	gateway = g
	return 1
}

//export bouncer_stop
func bouncer_stop() {
	defer deny("stop", new(C.int))
	if gateway == nil {
		return
	}
	gateway.Stop()
	gateway = nil
}

//export bouncer_message
func bouncer_message(p *C.struct_bouncer_publish) (ok C.int) {
	defer deny("message", &ok)
	allowed := gateway.Message(&plugin.Publish{
		Identity:  borrow(unsafe.Pointer(p.identity), p.identity_len),
		Certified: bool(p.certified),
		ClientID:  borrow(unsafe.Pointer(p.client_id), p.client_id_len),
		Topic:     borrow(unsafe.Pointer(p.topic), p.topic_len),
		Payload:   borrow(p.payload, p.payload_len),
	})
	if allowed {
		return 1
	}
	return 0
}

//export bouncer_tick
func bouncer_tick() {
	defer deny("tick", new(C.int))
	gateway.Tick()
}

// deny is deferred by every export: a panic must not leave Go, and what it interrupted is refused.
func deny(where string, ok *C.int) {
	if v := recover(); v != nil {
		*ok = 0
		broker{}.Log(slog.LevelError, fmt.Sprintf("internal error in %s, caught: %v; please report it", where, v))
	}
}

// borrow returns the broker's memory as a slice, for the length of a call.
func borrow(p unsafe.Pointer, n C.size_t) []byte {
	if p == nil {
		return nil
	}
	return unsafe.Slice((*byte)(p), int(n))
}

// broker is plugin.Host.
type broker struct{}

func (broker) Log(level slog.Level, line string) {
	text := C.CString(line)
	defer C.free(unsafe.Pointer(text))
	C.bouncer_log(logLevel(level), text)
}

func logLevel(level slog.Level) C.int {
	switch {
	case level >= slog.LevelError:
		return C.MOSQ_LOG_ERR
	case level >= slog.LevelWarn:
		return C.MOSQ_LOG_WARNING
	case level >= slog.LevelInfo:
		return C.MOSQ_LOG_NOTICE
	default:
		return C.MOSQ_LOG_DEBUG
	}
}

func (broker) Publish(p downlink.Publish) error {
	topic := C.CString(p.Topic)
	defer C.free(unsafe.Pointer(topic))
	if rc := C.bouncer_publish_to(topic, unsafe.Pointer(unsafe.SliceData(p.Payload)), C.int(len(p.Payload)), C.int(p.QoS)); rc != C.MOSQ_ERR_SUCCESS {
		return fmt.Errorf("MOSQ_ERR_%d", int(rc))
	}
	return nil
}

func (broker) Wake() { C.bouncer_wake() }

func (broker) WakeRounds() uint64 { return 2 }
