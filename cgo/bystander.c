/* The broker asks about every single delivery, and most are to clients who are no devices, of messages that nothing is
 * to be decided on. Such a question is answered here in some 20 ns, where a call into Go takes 200. Nothing is decided
 * here: what is not certain goes to Go. */

#define _GNU_SOURCE
#include "plugin.h"
#include "bystander.h"

#include <string.h>

/* A user name longer than any device id (docs/envelope.md) is left to Go, like one that is not in the table. */
#define MAX_NAME 64
#define NAMES 4096
#define MAX_TOPICS 32 /* more than bouncer.toml may have */

uint64_t bouncer_device_changes = 1;

/* The filters "before + one level + after" of the gated topics and of the gateway's own. They are set at the start. */
static struct {
	char *before, *after;
	size_t before_len, after_len;
	bool gated;
} topics[MAX_TOPICS];
static size_t topic_count;
static bool too_many_topics;

/* User names that are no device's, each in the place that its hash says, as of the given count of changes; 0: none. */
static struct {
	uint64_t changes;
	uint8_t len;
	char name[MAX_NAME];
} names[NAMES];

void bouncer_guard_topic(const char *before, const char *after, bool gated)
{
	if(topic_count == MAX_TOPICS){
		too_many_topics = true;
		return;
	}
	topics[topic_count].before = strdup(before);
	topics[topic_count].after = strdup(after);
	topics[topic_count].before_len = strlen(before);
	topics[topic_count].after_len = strlen(after);
	topics[topic_count].gated = gated;
	if(!topics[topic_count].before || !topics[topic_count].after) too_many_topics = true;
	else topic_count++;
}

/* Whether the topic has the beginning and the end of a filter. What lies between may be several levels, which the filter
 * does not match: that is for Go to see. */
static bool may_match(const char *topic, bool gated_only)
{
	if(too_many_topics) return true;
	size_t len = strlen(topic);
	for(size_t i = 0; i < topic_count; i++){
		if(gated_only && !topics[i].gated) continue;
		if(len >= topics[i].before_len + topics[i].after_len
				&& memcmp(topic, topics[i].before, topics[i].before_len) == 0
				&& memcmp(topic + len - topics[i].after_len, topics[i].after, topics[i].after_len) == 0){
			return true;
		}
	}
	return false;
}

bool bouncer_may_be_gated(const char *topic)
{
	return may_match(topic, true);
}

bool bouncer_may_concern(const char *topic)
{
	return may_match(topic, false);
}

/* FNV-1a. A client whose name shares its place with another's makes both slow, and no more. */
static size_t place(const char *name, size_t len)
{
	uint32_t hash = 2166136261u;

	for(size_t i = 0; i < len; i++) hash = (hash ^ (uint8_t)name[i]) * 16777619u;
	return (hash ^ hash >> 16) % NAMES;
}

bool bouncer_is_bystander(const char *username)
{
	if(!username) return true;
	size_t len = strlen(username);
	if(len == 0) return true;
	if(len > MAX_NAME) return false;
	size_t i = place(username, len);
	return names[i].changes == __atomic_load_n(&bouncer_device_changes, __ATOMIC_ACQUIRE) && names[i].len == len
			&& memcmp(names[i].name, username, len) == 0;
}

void bouncer_note_bystander(const char *username, uint64_t changes)
{
	if(!username) return;
	size_t len = strlen(username);
	if(len == 0 || len > MAX_NAME) return;
	size_t i = place(username, len);
	names[i].changes = changes;
	names[i].len = (uint8_t)len;
	memcpy(names[i].name, username, len);
}
