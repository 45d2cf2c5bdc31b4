/* Strict JSON without allocation. Internal: not installed. */
#ifndef BOUNCER_JSON_H
#define BOUNCER_JSON_H

#include "bouncer_device.h"

/* Passes over white space. */
const char *bouncer_json_space(const char *at, const char *end);

/*
 * Passes over one value that begins at at, and returns what follows it, or NULL if there is no value as RFC 8259 and the
 * specification have it. depth, at most BOUNCER_MAX_DEPTH, is how deep it may be nested. Names that occur twice are not
 * looked for.
 */
const char *bouncer_json_value(const char *at, const char *end, unsigned depth);

/* Passes over a string; the same. */
const char *bouncer_json_string(const char *at, const char *end);

/*
 * Whether no object within a value that bouncer_json_value has accepted has a name twice. The time grows with the number of
 * names of an object times its length.
 */
int bouncer_json_unique(const char *at, const char *end);

/* Whether a string that bouncer_json_string has accepted, without its quotes, has these characters once its escapes are undone. */
int bouncer_json_same(bouncer_text string, bouncer_text other);

#endif
