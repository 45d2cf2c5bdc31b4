/* Quick answers to questions about clients and topics that the gateway does not decide on. Broker's thread only,
 * but for the counter in plugin.h. */

#ifndef BOUNCER_BYSTANDER_H
#define BOUNCER_BYSTANDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether a topic may be a gated one, and whether it may be a gated one or one of the gateway's own: false is certain,
 * true is for Go to find out. */
bool bouncer_may_be_gated(const char *topic);
bool bouncer_may_concern(const char *topic);

/* Whether a client with a user name, NULL for none, and a client id is known to be no device and to have no client id of
 * another's; false is for Go to find out. */
bool bouncer_is_bystander(const char *username, const char *client_id);

/* Remembers that a client is so, as Go has found when bouncer_device_changes was changes. */
void bouncer_note_bystander(const char *username, const char *client_id, uint64_t changes);

/* Whether a message is one by which the broker is asked who has subscribed: see bouncer_set_question. */
bool bouncer_is_question(const void *payload, size_t len);

#endif
