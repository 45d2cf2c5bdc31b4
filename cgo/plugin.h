/* What passes between plugin.c and main.go. */

#ifndef BOUNCER_PLUGIN_H
#define BOUNCER_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>

/* One publish. The pointers are the broker's, valid during the call, and may be NULL where the length is 0. */
struct bouncer_publish {
	const char *identity;
	size_t identity_len;
	const char *client_id;
	size_t client_id_len;
	const char *topic;
	size_t topic_len;
	const void *payload;
	size_t payload_len;
	bool certified; /* a certificate was presented and identity is its common name */
};

/* Writes "bouncer: " and the line to the broker's log. Broker's thread only. */
void bouncer_log(int level, const char *line);

/* Publishes to whoever has subscribed to topic; returns MOSQ_ERR_*. The payload is copied. Broker's thread only. */
int bouncer_publish_to(const char *topic, const void *payload, int payload_len, int qos);

/* Ends the present sleep of the broker's thread. Any thread. */
void bouncer_wake(void);

#endif
