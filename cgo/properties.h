/* MQTT 5 properties of a publish. Broker's thread only. */

#ifndef BOUNCER_PROPERTIES_H
#define BOUNCER_PROPERTIES_H

#include <stddef.h>

/* A traceparent of W3C Trace Context, version 00, is so long. */
enum { BOUNCER_TRACEPARENT = 55 };

/* Writes the value of the user property "traceparent", without a terminating zero, and returns its length; 0: there is
 * none, or it is longer than one can be. */
size_t bouncer_traceparent(const void *properties, char value[BOUNCER_TRACEPARENT]);

#endif
