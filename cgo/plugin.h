/* What passes between plugin.c and main.go. */

#ifndef BOUNCER_PLUGIN_H
#define BOUNCER_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One publish, will, delivery or subscription. The pointers are the broker's, valid during the call, and may be NULL
 * where the length is 0. */
struct bouncer_publish {
	const void *connection; /* identifies the connection; never followed */
	const char *identity;
	size_t identity_len;
	const char *client_id;
	size_t client_id_len;
	const char *topic;
	size_t topic_len;
	const void *payload;
	size_t payload_len;
	const void *correlation; /* MQTT 5's, of a request for a response; only in MESSAGE */
	size_t correlation_len;
	const char *response_topic;
	size_t response_topic_len;
	int qos;
	bool retain;
	const void *properties; /* of MQTT 5, in a message; NULL: none */
	long properties_size; /* in bytes of the packet; -1: too many, or they cannot be counted */
	bool presented; /* a certificate was presented; common_name is its first common name, NULL where that is no text */
	const unsigned char *common_name;
	size_t common_name_len;
	bool certified; /* a certificate was presented and identity is its common name */
	bool other_issuer; /* and none of the issuers has signed it, though there are some */
	int subscriptions; /* the length of the broker's list of the session's; only in SUBSCRIBE and UNSUBSCRIBE */
};

/* What bouncer_message returns. */
enum bouncer_outcome {
	BOUNCER_REFUSE = 0,
	BOUNCER_ROUTE = 1,
	BOUNCER_SWALLOW = 2,
	BOUNCER_RELAY = 3,
};

/* What bouncer_access and bouncer_retained return. */
enum bouncer_decision {
	BOUNCER_DENY = 0,
	BOUNCER_ALLOW = 1,
	BOUNCER_NOT_CONCERNED = 2,
	BOUNCER_ALLOW_CERTIFIED = 3, /* allow if the certificate has the user name, else not concerned */
};

/* What happens to a session when its connection ends. */
enum bouncer_session {
	BOUNCER_SESSION_MAY_STAY = 0,
	BOUNCER_SESSION_STAYS = 1,
	BOUNCER_SESSION_ENDS = 2,
};

/* How questions of access are answered that are not the gateway's concern. */
enum bouncer_others {
	BOUNCER_OTHERS_DEFER = 0,
	BOUNCER_OTHERS_ALLOW = 1,
	BOUNCER_OTHERS_IGNORE = 2, /* only from 2.1 on */
};
void bouncer_set_others(int others);

/* By what to identify clients whose certificates do not belong to a registered device. */
enum bouncer_strangers {
	BOUNCER_STRANGERS_ANY = 0,
	BOUNCER_STRANGERS_BY_NAME = 1,
	BOUNCER_STRANGERS_BY_CERTIFICATE = 2, /* what is known of a user name says nothing of a client */
};
void bouncer_set_strangers(int strangers);

/* Names topics that are the gateway's concern: those that begin and end so, with one level between. Called at the start. */
void bouncer_guard_topic(const char *before, const char *after, bool gated);

/* Counts the changes of the registry; to be incremented, atomically, after each. Any thread. */
extern uint64_t bouncer_device_changes;

/* Whether the broker is 2.1 or later. */
bool bouncer_broker_is_2_1(void);

/* Ends a client's connection without its last will. Broker's thread only. */
void bouncer_kick(const char *client_id);

/* Ends the connections of all clients with a user name, without their last wills. Broker's thread only. */
void bouncer_kick_user(const char *username);

/* Puts the SHA-256 of the client's certificate into sum, 32 bytes; false: it presented none. connection is that of the
 * publish which is being looked at. Broker's thread only. */
bool bouncer_fingerprint(uintptr_t connection, unsigned char *sum);

/* Sets the payload, 16 bytes, of messages that no client may read: the plugin sends them to find out who has subscribed. */
void bouncer_set_question(const void *payload);

/* Whether the broker ticks with per_listener_settings true; where it cannot be told, false. */
bool bouncer_ticks_with_listener_settings(void);

/* Writes "bouncer: " and the line to the broker's log. Broker's thread only. */
void bouncer_log(int level, const char *line);

/* Publishes to the subscribers of topic; returns MOSQ_ERR_*. Payload and properties are copied. Broker's thread
 * only. */
struct bouncer_properties;
int bouncer_publish_to(const char *topic, const void *payload, int payload_len, int qos, bool retain,
		const struct bouncer_properties *properties);

/* Ends the present sleep of the broker's thread. Any thread. */
void bouncer_wake(void);

#endif
