// Package main is the shared library that the broker loads. It translates between the broker's C structures and
// plugin.Gateway, and holds nothing worth testing without a broker.
package main

/*
#cgo CFLAGS: -std=c11 -Wall -Wextra -Wno-unused-parameter -Werror
#cgo LDFLAGS: -lcrypto -Wl,-unresolved-symbols=ignore-all
#include <stdlib.h>
#include <mosquitto.h>
#include "certificate.h"
#include "plugin.h"
#include "properties.h"
#include "signals.h"
*/
import "C"

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/mqtt"
	"mosquitto-bouncer/plugin/subscription"
)

// gateway is the one instance in this process, and users how many plugin lines of the broker's configuration share it.
// Only the broker's thread touches them.
var (
	gateway *plugin.Gateway
	users   int
)

// panics is how often a panic that gets here is worth a line in the log: a client may provoke it.
var panics = rate.Sometimes{First: 3, Interval: 10 * time.Second}

// main is never called: the broker calls the exported functions.
func main() {}

//export bouncer_start
func bouncer_start(configFile *C.char) (ok C.int) {
	defer deny("start", &ok)
	file := C.GoString(configFile)
	if gateway != nil {
		if err := gateway.Share(file); err != nil {
			broker{}.Log(slog.LevelError, err.Error())
			return 0
		}
		users++
		return 1
	}
	g, err := plugin.Start(file, broker{})
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			broker{}.Log(slog.LevelError, strings.TrimSpace(line))
		}
		return 0
	}
	gateway, users = g, 1
	g.Topics().All(guardTopic)
	question := g.SessionQuestion()
	C.bouncer_set_question(unsafe.Pointer(&question[0]))
	g.OnIdentityChange(func() { atomic.AddUint64((*uint64)(&C.bouncer_device_changes), 1) })
	// The broker installs its signal handlers after this; where it never ticks, no event may come before a signal does.
	for _, delay := range []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second} {
		time.AfterFunc(delay, func() { C.bouncer_rearm_signals() })
	}
	if g.ListenerSettings() && !bool(C.bouncer_ticks_with_listener_settings()) {
		C.bouncer_release_signals()
	} else {
		time.AfterFunc(releaseSignalsAfter, releaseSignals)
	}
	return 1
}

// releaseSignalsAfter is how long after the start a broker must have ticked.
const releaseSignalsAfter = 10 * time.Second

// releaseSignals has a thread take the signals that end a broker which does not tick, against all expectation.
func releaseSignals() {
	runtime.LockOSThread()
	if bool(C.bouncer_release_signals_late()) {
		select {} // with this thread
	}
	runtime.UnlockOSThread()
}

func guardTopic(before, after string, gated bool) {
	b, a := C.CString(before), C.CString(after)
	defer C.free(unsafe.Pointer(b))
	defer C.free(unsafe.Pointer(a))
	C.bouncer_guard_topic(b, a, C.bool(gated))
}

//export bouncer_stop
func bouncer_stop() {
	defer deny("stop", new(C.int))
	if users--; users > 0 || gateway == nil {
		return
	}
	gateway.Stop()
	gateway = nil
}

//export bouncer_access
func bouncer_access(action C.int, p *C.struct_bouncer_publish) (decision C.int) {
	defer deny("access", &decision)
	publish := borrowPublish(p)
	return cDecision(gateway.Access(gate.Action(action), &publish))
}

//export bouncer_retained
func bouncer_retained(p *C.struct_bouncer_publish) (decision C.int) {
	defer deny("retained message", &decision)
	publish := borrowPublish(p)
	return cDecision(gateway.ServeRetained(&publish))
}

// cDecision translates an answer; whatever it does not know is a denial.
func cDecision(d gate.Decision) C.int {
	switch d {
	case gate.Allow:
		return C.BOUNCER_ALLOW
	case gate.NotConcerned:
		return C.BOUNCER_NOT_CONCERNED
	case gate.AllowCertified:
		return C.BOUNCER_ALLOW_CERTIFIED
	default:
		return C.BOUNCER_DENY
	}
}

//export bouncer_message
func bouncer_message(p *C.struct_bouncer_publish) (outcome C.int) {
	defer deny("message", &outcome)
	publish := borrowPublish(p)
	switch gateway.Message(&publish) {
	case gate.Route:
		return C.BOUNCER_ROUTE
	case gate.Swallow:
		return C.BOUNCER_SWALLOW
	case gate.Relay:
		return C.BOUNCER_RELAY
	default:
		return C.BOUNCER_REFUSE
	}
}

//export bouncer_relay_failed
func bouncer_relay_failed(code C.int) {
	defer deny("relay", new(C.int))
	gateway.RelayFailed(int(code))
}

//export bouncer_disconnected
func bouncer_disconnected(p *C.struct_bouncer_publish, session C.int) {
	defer deny("disconnect", new(C.int))
	publish := borrowPublish(p)
	switch session {
	case C.BOUNCER_SESSION_STAYS:
		gateway.Disconnected(&publish, subscription.Stays)
	case C.BOUNCER_SESSION_ENDS:
		gateway.Disconnected(&publish, subscription.Ends)
	default:
		gateway.Disconnected(&publish, subscription.MayStay)
	}
}

//export bouncer_connected
func bouncer_connected(p *C.struct_bouncer_publish) {
	defer deny("connect", new(C.int))
	publish := borrowPublish(p)
	gateway.Connected(&publish)
}

//export bouncer_reload
func bouncer_reload() {
	defer deny("reload", new(C.int))
	gateway.Reload()
}

//export bouncer_tick
func bouncer_tick() {
	defer deny("tick", new(C.int))
	gateway.Tick()
}

// deny is deferred by every export: a panic must not leave Go, and what it interrupted is refused: 0 is a refusal in
// every answer.
func deny(where string, answer *C.int) {
	if v := recover(); v != nil {
		*answer = 0
		panics.Do(func() {
			broker{}.Log(slog.LevelError, fmt.Sprintf("internal error in %s, caught: %v; please report it", where, v))
		})
	}
}

func borrowPublish(p *C.struct_bouncer_publish) gate.Publish {
	return gate.Publish{
		Connection: uintptr(p.connection),
		Identity:   borrow(unsafe.Pointer(p.identity), p.identity_len),
		Certified:  bool(p.certified),
		Presented:  bool(p.presented),
		CommonName: borrow(unsafe.Pointer(p.common_name), p.common_name_len),

		OtherIssuer:   bool(p.other_issuer),
		Subscriptions: int(p.subscriptions),

		ClientID:   borrow(unsafe.Pointer(p.client_id), p.client_id_len),
		Topic:      borrow(unsafe.Pointer(p.topic), p.topic_len),
		Payload:    borrow(p.payload, p.payload_len),
		QoS:        byte(p.qos),
		Retain:     bool(p.retain),
		Properties: unsafe.Pointer(p.properties),

		PropertyBytes: int(p.properties_size),
		Correlation:   borrow(p.correlation, p.correlation_len),
		ResponseTopic: borrow(unsafe.Pointer(p.response_topic), p.response_topic_len),
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

func (broker) Publish(p mqtt.Message) error {
	topic := C.CString(p.Topic)
	defer C.free(unsafe.Pointer(topic))
	var pinner runtime.Pinner // of what the structure points to
	defer pinner.Unpin()
	properties := C.struct_bouncer_properties{expiry: C.uint32_t(p.Expiry)}
	if len(p.Correlation) > 0 {
		pinner.Pin(unsafe.SliceData(p.Correlation))
		properties.correlation, properties.correlation_len = unsafe.Pointer(unsafe.SliceData(p.Correlation)), C.size_t(len(p.Correlation))
	}
	if len(p.User) > 0 {
		user := make([]*C.char, 0, 2*len(p.User))
		for _, u := range p.User {
			user = append(user, C.CString(u.Name), C.CString(u.Value))
		}
		defer func() {
			for _, text := range user {
				C.free(unsafe.Pointer(text))
			}
		}()
		pinner.Pin(unsafe.SliceData(user))
		properties.user, properties.user_pairs = unsafe.SliceData(user), C.size_t(len(p.User))
	}
	if len(p.Properties) > 0 {
		pinner.Pin(unsafe.SliceData(p.Properties))
		properties.packed, properties.packed_len = unsafe.Pointer(unsafe.SliceData(p.Properties)), C.size_t(len(p.Properties))
	}
	rc := C.bouncer_publish_to(topic, unsafe.Pointer(unsafe.SliceData(p.Payload)), C.int(len(p.Payload)), C.int(p.QoS), C.bool(p.Retain), &properties)
	if rc != C.MOSQ_ERR_SUCCESS {
		return fmt.Errorf("MOSQ_ERR_%d", int(rc))
	}
	return nil
}

func (broker) Kick(clientID string) {
	id := C.CString(clientID)
	defer C.free(unsafe.Pointer(id))
	C.bouncer_kick(id)
}

func (broker) KickUser(username string) {
	name := C.CString(username)
	defer C.free(unsafe.Pointer(name))
	C.bouncer_kick_user(name)
}

func (broker) Fingerprint(connection uintptr) (sum [32]byte, ok bool) {
	ok = bool(C.bouncer_fingerprint(C.uintptr_t(connection), (*C.uchar)(&sum[0])))
	return sum, ok
}

func (broker) SetIssuers(certificates [][]byte) bool {
	C.bouncer_issuers_begin()
	for _, der := range certificates {
		if !bool(C.bouncer_issuers_add(unsafe.Pointer(unsafe.SliceData(der)), C.size_t(len(der)))) {
			return false
		}
	}
	C.bouncer_issuers_end()
	return true
}

func (broker) SetOthers(others plugin.Others) {
	switch others {
	case plugin.OthersAllow:
		C.bouncer_set_others(C.BOUNCER_OTHERS_ALLOW)
	case plugin.OthersIgnore:
		C.bouncer_set_others(C.BOUNCER_OTHERS_IGNORE)
	default:
		C.bouncer_set_others(C.BOUNCER_OTHERS_DEFER)
	}
}

func (broker) SetStrangers(strangers gate.Strangers) {
	switch strangers {
	case gate.StrangersAny:
		C.bouncer_set_strangers(C.BOUNCER_STRANGERS_ANY)
	case gate.StrangersByName:
		C.bouncer_set_strangers(C.BOUNCER_STRANGERS_BY_NAME)
	default:
		C.bouncer_set_strangers(C.BOUNCER_STRANGERS_BY_CERTIFICATE)
	}
}

func (broker) Wake() { C.bouncer_wake() }

func (broker) Traceparent(properties unsafe.Pointer) string {
	var value [C.BOUNCER_TRACEPARENT]C.char
	n := C.bouncer_traceparent((*C.mosquitto_property)(properties), &value[0])
	return C.GoStringN(&value[0], C.int(n))
}

func (broker) Properties(properties unsafe.Pointer) []byte {
	var packed C.struct_bouncer_packed
	defer C.bouncer_free_packed(&packed)
	if !bool(C.bouncer_pack_properties((*C.mosquitto_property)(properties), &packed)) {
		return nil
	}
	return C.GoBytes(unsafe.Pointer(packed.data), C.int(packed.len))
}

func (broker) Is2_1() bool { return bool(C.bouncer_broker_is_2_1()) }
