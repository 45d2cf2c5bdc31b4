/* What signing and verifying share. Internal: not installed. */
#ifndef BOUNCER_VALUES_H
#define BOUNCER_VALUES_H

#include "bouncer_device.h"

#define BOUNCER_MAX_TIME_DIGITS 16
#define BOUNCER_VERSION_AT 14 /* where a UUID has its version */

int bouncer_is_device_id(bouncer_text id);

/* Decodes hexadecimal digits into at most size bytes; 0 if there are others, or the number is odd or too large. */
int bouncer_decode_hex(bouncer_text text, uint8_t *out, size_t size);
char *bouncer_encode_hex(const uint8_t *data, size_t length, char *out);

/* Decodes a UUID of 36 characters; 0 if it is none. */
int bouncer_decode_uuid(bouncer_text text, uint8_t id[16]);

/* Reads digits alone, 0 to BOUNCER_MAX_TIME, without a leading zero. */
const char *bouncer_read_time(const char *at, const char *end, int64_t *value);

/* Whether the credential can sign, or verify. A device with one bad secret is not used at all. */
int bouncer_is_usable(const bouncer_device *device, int signing);

/* Whether s of a signature with P-256 is above half the order. */
int bouncer_is_high(const uint8_t s[32]);

/* Without white space around it. */
bouncer_text bouncer_trim(bouncer_text text);

/* Whether a text without white space around it is one JSON value that the gateway accepts. */
int bouncer_is_json(bouncer_text text, unsigned depth);

#endif
