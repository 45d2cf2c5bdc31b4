// Package devices tests the libraries for devices against each other and on a real broker.
//
// Each library has an agent: a program with one Device that this package controls, line by line. It is started as
//
//	AGENT BUNDLE STATE
//
// with the directory of a bundle (it has device.json) and that of the Device's state, which is made where there is none. Each
// line of its standard input is an order, a JSON object:
//
//	{"op":"start"}                          connect, and go on until stop
//	{"op":"publish","tag":"a","payload":…}  give the payload to Device.publish, exactly the bytes after "payload": where the
//	                                        library takes JSON text, else the value; "payload" is the last member
//	{"op":"clock","offset":-3600}           the system's clock is that of the machine plus so many seconds, from now on
//	{"op":"on_command","do":"answer"}       what the command handler does: "answer" (the first): succeeded, with the result
//	                                        {"n":N}, N counted from 1 in this process; "fail": it fails with the text "broken"
//	                                        (an exception or error of the language); "die": it ends the process at once
//	                                        (SIGKILL to itself), after it has printed its event
//	{"op":"stop"}                           close the Device in order, and exit with 0
//
// The end of the standard input is the same as stop. An agent prints events, a JSON object a line, flushed at once:
//
//	{"event":"ready"}                                             the Device is made, and the outbox read
//	{"event":"connected"}  {"event":"disconnected"}
//	{"event":"queued","tag":"a","delivery":7}                     publish returned; the message is on the disk
//	{"event":"not_queued","tag":"a","error":"…"}                  publish failed
//	{"event":"outcome","delivery":7,"outcome":"accepted","reason":"","message_id":"…","sent":1,"may_be_repeated":false}
//	{"event":"command","id":"…","command":…}                      the handler was called
//	{"event":"command_refused","reason":"forged"}                 also "repeated"
//	{"event":"response","text":"…"}
//	{"event":"error","error":"…"}                                 what the Device reported
//
// A delivery is a number of the library's own, the same after a restart of the agent. Logs go to the standard error.
//
// For the cross-check each library has a second program, started without arguments, that answers each line of its standard
// input, a JSON object, with one line:
//
//	{"do":"sign","device":D,"timestamp":N,"message_id":"…","payload":"…"}  ->  {"message":"…"} or {"error":"…"}
//	{"do":"verify","device":D,"message":"…"}                               ->  {"result":"good"} or {"result":"malformed"},
//	                                                                           {"result":"bad_signature"}
//	{"do":"command","device":D,"message":"…","now":N}                      ->  {"result":"good","id":"…","command":"…","expires":N}
//	                                                                           or {"result":"forged"} and so on; now may be absent
//
// with texts as strings of JSON, and D an element of "devices" in device/vectors/device-v1.json. verify is with the device's
// own secret or public key, for the payload as sent: what the gateway does.
package devices
