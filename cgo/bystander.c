/* The broker asks about every single delivery, and most are to clients who are no devices, of messages that nothing is
 * to be decided on. Such a question is answered here in some 20 ns, where a call into Go takes 200. Nothing is decided
 * here: what is not certain goes to Go. */

#define _GNU_SOURCE
#include "plugin.h"
#include "bystander.h"

#include <string.h>

/* A client whose user name or client id is longer than any device id (docs/envelope.md) is left to Go, like one that is not
 * in the table. */
#define MAX_NAME 64
#define CLIENTS 4096
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

/* Clients that are no devices, by user name and client id, each in the place that its hash says, as of the given count of
 * changes; 0: none. */
static struct {
	uint64_t changes;
	uint8_t name_len, id_len;
	char name[MAX_NAME], id[MAX_NAME];
} clients[CLIENTS];

static char question[16];
static bool has_question;

void bouncer_set_question(const void *payload)
{
	memcpy(question, payload, sizeof(question));
	has_question = true;
}

bool bouncer_is_question(const void *payload, size_t len)
{
	return has_question && payload && len == sizeof(question) && memcmp(payload, question, sizeof(question)) == 0;
}

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

/* FNV-1a. A client that shares its place with another makes both slow, and no more. */
static size_t place(const char *name, size_t name_len, const char *id, size_t id_len)
{
	uint32_t hash = 2166136261u;

	for(size_t i = 0; i < name_len; i++) hash = (hash ^ (uint8_t)name[i]) * 16777619u;
	hash = (hash ^ 0xff) * 16777619u;
	for(size_t i = 0; i < id_len; i++) hash = (hash ^ (uint8_t)id[i]) * 16777619u;
	return (hash ^ hash >> 16) % CLIENTS;
}

bool bouncer_is_bystander(const char *username, const char *client_id)
{
	if(!client_id) return false;
	size_t name_len = username ? strlen(username) : 0, id_len = strlen(client_id);
	if(name_len > MAX_NAME || id_len > MAX_NAME) return false;
	size_t i = place(username, name_len, client_id, id_len);
	return clients[i].changes == __atomic_load_n(&bouncer_device_changes, __ATOMIC_ACQUIRE)
			&& clients[i].name_len == name_len && clients[i].id_len == id_len
			&& (name_len == 0 || memcmp(clients[i].name, username, name_len) == 0) && memcmp(clients[i].id, client_id, id_len) == 0;
}

void bouncer_note_bystander(const char *username, const char *client_id, uint64_t changes)
{
	if(!client_id) return;
	size_t name_len = username ? strlen(username) : 0, id_len = strlen(client_id);
	if(name_len > MAX_NAME || id_len > MAX_NAME) return;
	size_t i = place(username, name_len, client_id, id_len);
	clients[i].changes = changes;
	clients[i].name_len = (uint8_t)name_len;
	clients[i].id_len = (uint8_t)id_len;
	if(name_len > 0) memcpy(clients[i].name, username, name_len);
	memcpy(clients[i].id, client_id, id_len);
}
