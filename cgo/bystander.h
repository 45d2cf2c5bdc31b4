/* Quick answers to questions about clients and topics that are none of the gateway's concern. Broker's thread only,
 * but for the counter in plugin.h. */

#ifndef BOUNCER_BYSTANDER_H
#define BOUNCER_BYSTANDER_H

#include <stdbool.h>

/* Whether a topic may be a gated one, and whether it may be a gated one or one of the gateway's own: false is certain,
 * true is for Go to find out. */
bool bouncer_may_be_gated(const char *topic);
bool bouncer_may_concern(const char *topic);

/* Whether a user name is known to be no device's; false is for Go to find out. */
bool bouncer_is_bystander(const char *username);

/* Remembers that a user name is no device's, as Go has found when bouncer_device_changes was changes. */
void bouncer_note_bystander(const char *username, uint64_t changes);

#endif
