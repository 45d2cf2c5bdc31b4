/* MQTT 5 properties of a publish. Broker's thread only. */

#ifndef BOUNCER_PROPERTIES_H
#define BOUNCER_PROPERTIES_H

#include <stddef.h>
#include <stdint.h>

#include <mosquitto.h>

/* What a client asks for with a request for a response. Either may be NULL; both are malloc's, for bouncer_free_request. */
struct bouncer_request {
	void *correlation;
	char *response_topic;
	size_t correlation_len;
};
void bouncer_read_request(const mosquitto_property *properties, struct bouncer_request *request);
void bouncer_free_request(struct bouncer_request *request);

/* A traceparent of W3C Trace Context, version 00, is so long. */
enum { BOUNCER_TRACEPARENT = 55 };

/* Writes the value of the user property "traceparent", without a terminating zero, and returns its length; 0: there is
 * none, or it is longer than one can be. */
size_t bouncer_traceparent(const mosquitto_property *properties, char value[BOUNCER_TRACEPARENT]);

/* Copies the properties that a subscriber is to see of a message: those that the broker shows a plugin. Returns MOSQ_ERR_*,
 * and an empty list with a failure. Without the functions that read them, the list is empty. */
int bouncer_copy_properties(mosquitto_property **list, const mosquitto_property *properties);
/* Returns how many bytes the properties of a publish take in a packet; -1: there are more than 64, or nothing can read
 * them. */
long bouncer_properties_size(const mosquitto_property *properties);

/* What a publish to a device bears. user is pairs of name and value, one after the other. */
struct bouncer_properties {
	const void *correlation;
	size_t correlation_len;
	const char *const *user;
	size_t user_pairs;
	uint32_t expiry; /* seconds; 0: none */
};

/* Makes a list for mosquitto_broker_publish; returns MOSQ_ERR_*, and an empty list with a failure. */
int bouncer_make_properties(mosquitto_property **list, const struct bouncer_properties *properties);

#endif
