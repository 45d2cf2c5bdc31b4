#define _GNU_SOURCE
#include "properties.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <mqtt_protocol.h>

/* How many properties are counted: one takes the broker more memory than it has bytes in a packet. */
#define MAX_COUNTED 64

/* How many user properties are looked at: each is copied to be read. */
#define MAX_LOOKED_AT 16

/* The functions that read properties. Debian's 2.0.21 does not export them from the broker; the client library of the
 * same version, on which the broker's package depends, has the same ones. Without either nothing is read, and a message
 * with properties on a gated topic is refused, since its size cannot be determined. */
static const mosquitto_property *(*read_byte)(const mosquitto_property *, int, uint8_t *, bool);
static const mosquitto_property *(*read_binary)(const mosquitto_property *, int, void **, uint16_t *, bool);
static const mosquitto_property *(*read_string)(const mosquitto_property *, int, char **, bool);
static const mosquitto_property *(*read_string_pair)(const mosquitto_property *, int, char **, char **, bool);
static const mosquitto_property *(*next_property)(const mosquitto_property *);
static int (*identifier)(const mosquitto_property *);

static void find(void *function, void *library, const char *name)
{
	void *symbol = dlsym(library, name);
	memcpy(function, &symbol, sizeof(symbol)); /* ISO C has no cast for it */
}

static void find_all(void)
{
	static bool sought = false;

	if(sought) return;
	sought = true;
	void *library = RTLD_DEFAULT; /* which is NULL */
	if(!dlsym(library, "mosquitto_property_read_binary")){
		library = dlopen("libmosquitto.so.1", RTLD_NOW | RTLD_LOCAL);
		if(!library) return;
	}
	find(&read_byte, library, "mosquitto_property_read_byte");
	find(&read_binary, library, "mosquitto_property_read_binary");
	find(&read_string, library, "mosquitto_property_read_string");
	find(&read_string_pair, library, "mosquitto_property_read_string_pair");
	find(&next_property, library, "mosquitto_property_next");
	find(&identifier, library, "mosquitto_property_identifier");
}

/* The bytes of one property in a packet, its identifier included; -1: it cannot be read. */
static long property_size(const mosquitto_property *property)
{
	char *name = NULL, *text = NULL;
	void *data = NULL;
	uint16_t len = 0;
	long size = -1;

	switch(identifier(property)){
		case MQTT_PROP_PAYLOAD_FORMAT_INDICATOR: return 2;
		case MQTT_PROP_TOPIC_ALIAS: return 3;
		case MQTT_PROP_MESSAGE_EXPIRY_INTERVAL: return 5;
		case MQTT_PROP_CONTENT_TYPE:
		case MQTT_PROP_RESPONSE_TOPIC:
			if(read_string(property, identifier(property), &text, false)) size = 3 + (long)(text ? strlen(text) : 0);
			break;
		case MQTT_PROP_CORRELATION_DATA:
			if(read_binary(property, MQTT_PROP_CORRELATION_DATA, &data, &len, false)) size = 3 + (long)len;
			break;
		case MQTT_PROP_USER_PROPERTY:
			if(read_string_pair(property, MQTT_PROP_USER_PROPERTY, &name, &text, false)){
				size = 5 + (long)(name ? strlen(name) : 0) + (long)(text ? strlen(text) : 0);
			}
			break;
		default: return 5; /* none that a client may send */
	}
	free(name);
	free(text);
	free(data);
	return size;
}

long bouncer_properties_size(const mosquitto_property *properties)
{
	long total = 0;

	if(!properties) return 0;
	find_all();
	if(!read_binary || !read_string || !read_string_pair || !next_property || !identifier) return -1;
	for(int i = 0; properties; i++, properties = next_property(properties)){
		long size = i < MAX_COUNTED ? property_size(properties) : -1;
		if(size < 0) return -1;
		total += size;
	}
	return total;
}

void bouncer_read_request(const mosquitto_property *properties, struct bouncer_request *request)
{
	uint16_t len = 0;

	*request = (struct bouncer_request){0};
	if(!properties) return;
	find_all();
	if(read_binary && read_binary(properties, MQTT_PROP_CORRELATION_DATA, &request->correlation, &len, false)){
		request->correlation_len = len;
	}
	if(read_string) read_string(properties, MQTT_PROP_RESPONSE_TOPIC, &request->response_topic, false);
}

void bouncer_free_request(struct bouncer_request *request)
{
	free(request->correlation);
	free(request->response_topic);
}

size_t bouncer_traceparent(const mosquitto_property *properties, char value[BOUNCER_TRACEPARENT])
{
	size_t len = 0;

	if(!properties) return 0;
	find_all();
	for(int i = 0; i < MAX_LOOKED_AT && read_string_pair && properties && len == 0; i++){
		char *name = NULL, *text = NULL;
		properties = read_string_pair(properties, MQTT_PROP_USER_PROPERTY, &name, &text, i > 0);
		if(properties && name && text && strcmp(name, "traceparent") == 0){
			size_t n = strlen(text);
			if(n <= BOUNCER_TRACEPARENT) memcpy(value, text, len = n);
		}
		free(name);
		free(text);
	}
	return len;
}

static void pack(struct bouncer_packed *to, int identifier, const void *data, size_t len)
{
	uint32_t size = (uint32_t)len;

	if(to->failed) return;
	unsigned char *grown = realloc(to->data, to->len + 1 + sizeof(size) + len);
	if(!grown){
		to->failed = true;
		return;
	}
	to->data = grown;
	to->data[to->len++] = (unsigned char)identifier;
	memcpy(to->data + to->len, &size, sizeof(size));
	to->len += sizeof(size);
	if(len > 0) memcpy(to->data + to->len, data, len);
	to->len += len;
}

/* Packs a text that was read: from 2.1 on, NULL is an empty one. */
static void pack_text(struct bouncer_packed *to, int identifier, const char *text)
{
	if(!text) text = "";
	pack(to, identifier, text, strlen(text) + 1);
}

static void pack_string(struct bouncer_packed *to, const mosquitto_property *properties, int identifier)
{
	char *text = NULL;

	if(read_string && read_string(properties, identifier, &text, false)) pack_text(to, identifier, text);
	free(text);
}

static void pack_user_properties(struct bouncer_packed *to, const mosquitto_property *properties)
{
	bool skip_first = false;

	while(!to->failed && read_string_pair && properties){
		char *name = NULL, *text = NULL;
		properties = read_string_pair(properties, MQTT_PROP_USER_PROPERTY, &name, &text, skip_first);
		if(properties){
			pack_text(to, MQTT_PROP_USER_PROPERTY, name);
			pack_text(to, MQTT_PROP_USER_PROPERTY, text);
		}
		free(name);
		free(text);
		skip_first = true;
	}
}

bool bouncer_pack_properties(const mosquitto_property *properties, struct bouncer_packed *packed)
{
	uint8_t is_text = 0;
	void *correlation = NULL;
	uint16_t len = 0;

	*packed = (struct bouncer_packed){0};
	if(!properties) return true;
	find_all();
	if(read_byte && read_byte(properties, MQTT_PROP_PAYLOAD_FORMAT_INDICATOR, &is_text, false)){
		pack(packed, MQTT_PROP_PAYLOAD_FORMAT_INDICATOR, &is_text, sizeof(is_text));
	}
	pack_string(packed, properties, MQTT_PROP_CONTENT_TYPE);
	pack_string(packed, properties, MQTT_PROP_RESPONSE_TOPIC);
	if(read_binary && read_binary(properties, MQTT_PROP_CORRELATION_DATA, &correlation, &len, false)){
		pack(packed, MQTT_PROP_CORRELATION_DATA, correlation, len);
		free(correlation);
	}
	pack_user_properties(packed, properties);
	return !packed->failed;
}

void bouncer_free_packed(struct bouncer_packed *packed)
{
	free(packed->data);
	*packed = (struct bouncer_packed){0};
}

/* Takes the next property from what was packed; false: there is none, or it is cut short. Texts end with a zero. */
static bool next_packed(const unsigned char **at, const unsigned char *end, int *identifier, const char **data, uint32_t *len)
{
	if((size_t)(end - *at) < 1 + sizeof(*len)) return false;
	*identifier = (*at)[0];
	memcpy(len, *at + 1, sizeof(*len));
	*at += 1 + sizeof(*len);
	if(*len > (size_t)(end - *at)) return false;
	*data = (const char *)*at;
	*at += *len;
	return true;
}

static bool is_text(const char *data, uint32_t len)
{
	return len > 0 && len <= UINT16_MAX + 1 && strnlen(data, len) == len - 1;
}

static int add_packed(mosquitto_property **list, const unsigned char **at, const unsigned char *end)
{
	int identifier = 0, other = 0;
	const char *data = NULL, *value = NULL;
	uint32_t len = 0, value_len = 0;

	if(!next_packed(at, end, &identifier, &data, &len)) return MOSQ_ERR_INVAL;
	switch(identifier){
		case MQTT_PROP_PAYLOAD_FORMAT_INDICATOR:
			return len == 1 ? mosquitto_property_add_byte(list, identifier, (uint8_t)data[0]) : MOSQ_ERR_INVAL;
		case MQTT_PROP_CONTENT_TYPE:
		case MQTT_PROP_RESPONSE_TOPIC:
			return is_text(data, len) ? mosquitto_property_add_string(list, identifier, data) : MOSQ_ERR_INVAL;
		case MQTT_PROP_CORRELATION_DATA:
			return len <= UINT16_MAX ? mosquitto_property_add_binary(list, identifier, data, (uint16_t)len) : MOSQ_ERR_INVAL;
		case MQTT_PROP_USER_PROPERTY:
			if(!next_packed(at, end, &other, &value, &value_len) || other != identifier
					|| !is_text(data, len) || !is_text(value, value_len)) return MOSQ_ERR_INVAL;
			return mosquitto_property_add_string_pair(list, identifier, data, value);
		default:
			return MOSQ_ERR_INVAL;
	}
}

static int add_all_packed(mosquitto_property **list, const unsigned char *data, size_t len)
{
	int rc = MOSQ_ERR_SUCCESS;

	for(const unsigned char *at = data, *end = data + len; rc == MOSQ_ERR_SUCCESS && at < end;){
		rc = add_packed(list, &at, end);
	}
	return rc;
}

int bouncer_copy_properties(mosquitto_property **list, const mosquitto_property *properties)
{
	struct bouncer_packed packed;
	int rc = MOSQ_ERR_NOMEM;

	*list = NULL;
	if(!properties) return MOSQ_ERR_SUCCESS;
	if(bouncer_pack_properties(properties, &packed)) rc = add_all_packed(list, packed.data, packed.len);
	bouncer_free_packed(&packed);
	if(rc != MOSQ_ERR_SUCCESS) mosquitto_property_free_all(list);
	return rc;
}

int bouncer_make_properties(mosquitto_property **list, const struct bouncer_properties *properties)
{
	int rc = MOSQ_ERR_SUCCESS;

	*list = NULL;
	if(properties->expiry > 0){
		rc = mosquitto_property_add_int32(list, MQTT_PROP_MESSAGE_EXPIRY_INTERVAL, properties->expiry);
	}
	if(rc == MOSQ_ERR_SUCCESS && properties->correlation_len > 0){
		rc = mosquitto_property_add_binary(list, MQTT_PROP_CORRELATION_DATA, properties->correlation,
				(uint16_t)properties->correlation_len);
	}
	for(size_t i = 0; rc == MOSQ_ERR_SUCCESS && i < properties->user_pairs; i++){
		rc = mosquitto_property_add_string_pair(list, MQTT_PROP_USER_PROPERTY, properties->user[2*i], properties->user[2*i + 1]);
	}
	if(rc == MOSQ_ERR_SUCCESS && properties->packed_len > 0){
		rc = add_all_packed(list, properties->packed, properties->packed_len);
	}
	if(rc != MOSQ_ERR_SUCCESS) mosquitto_property_free_all(list);
	return rc;
}
