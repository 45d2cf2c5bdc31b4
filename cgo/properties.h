/* MQTT 5 properties of a publish. Broker's thread only. */

#ifndef BOUNCER_PROPERTIES_H
#define BOUNCER_PROPERTIES_H

#include <stdbool.h>
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

/* Properties of a message in one piece of memory, to be kept by this process or the next on the same machine. For each the
 * identifier, the length (4 bytes) and the data, texts with a zero at their end; a user property is two. */
struct bouncer_packed {
	unsigned char *data; /* malloc'ed; NULL: there are none */
	size_t len;
	bool failed;
};

/* Packs the properties that bouncer_copy_properties copies; false: there is no memory. */
bool bouncer_pack_properties(const mosquitto_property *properties, struct bouncer_packed *packed);
void bouncer_free_packed(struct bouncer_packed *packed);

/* Copies the properties that a subscriber is to see of a message: those that the broker shows a plugin. Returns MOSQ_ERR_*,
 * and an empty list with a failure. Without the functions that read them, the list is empty. */
int bouncer_copy_properties(mosquitto_property **list, const mosquitto_property *properties);
/* Returns how many bytes the properties of a publish take in a packet; -1: there are more than 64, or nothing can read
 * them. */
long bouncer_properties_size(const mosquitto_property *properties);

/* The properties of a publish in the gateway's name. user is pairs of name and value, one after the other. */
struct bouncer_properties {
	const void *correlation;
	size_t correlation_len;
	const char *const *user;
	size_t user_pairs;
	uint32_t expiry; /* seconds; 0: none */
	const void *packed; /* more of them, as bouncer_pack_properties packed them */
	size_t packed_len;
};

/* Makes a list for mosquitto_broker_publish; returns MOSQ_ERR_*, and an empty list with a failure. */
int bouncer_make_properties(mosquitto_property **list, const struct bouncer_properties *properties);

#endif
