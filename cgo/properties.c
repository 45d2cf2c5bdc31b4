#define _GNU_SOURCE
#include "properties.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <mosquitto.h>
#include <mqtt_protocol.h>

/* How many user properties are looked at: each is copied to be read. */
#define MAX_LOOKED_AT 16

typedef const mosquitto_property *(*read_pair)(const mosquitto_property *, int, char **, char **, bool);

/* The broker has the function where its symbols are all exported (Debian 12, and 2.1); else it is in the library
 * that is always installed with it. */
static read_pair find_read_pair(void)
{
	static const char name[] = "mosquitto_property_read_string_pair";

	void *found = dlsym(RTLD_DEFAULT, name);
	if(!found){
		void *library = dlopen("libmosquitto.so.1", RTLD_NOW | RTLD_LOCAL);
		if(library) found = dlsym(library, name);
	}
	read_pair f;
	memcpy(&f, &found, sizeof(f)); /* ISO C has no cast for this */
	return f;
}

size_t bouncer_traceparent(const void *properties, char value[BOUNCER_TRACEPARENT])
{
	static bool looked_for;
	static read_pair read;
	const mosquitto_property *at = properties;
	size_t len = 0;

	if(!looked_for){
		looked_for = true;
		read = find_read_pair();
	}
	if(!read) return 0;
	for(int i = 0; i < MAX_LOOKED_AT && at && len == 0; i++){
		char *name = NULL, *text = NULL;
		at = read(at, MQTT_PROP_USER_PROPERTY, &name, &text, i > 0);
		if(at && name && text && strcmp(name, "traceparent") == 0){
			size_t n = strlen(text);
			if(n <= BOUNCER_TRACEPARENT) memcpy(value, text, len = n);
		}
		free(name);
		free(text);
	}
	return len;
}
