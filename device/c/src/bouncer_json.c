/* Strict JSON without allocation and without recursion. */
#include "bouncer_json.h"

#include <string.h>

const char *bouncer_json_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

static int is_digit(const char *at, const char *end)
{
    return at < end && *at >= '0' && *at <= '9';
}

/* Passes over a character above U+007F, which has to be well-formed (Unicode, table 3-7). */
static const char *utf8(const char *at, const char *end)
{
    unsigned first = (unsigned char)*at++;
    unsigned low = 0x80, high = 0xbf, more;

    if (first < 0xc2 || first > 0xf4)
        return NULL;
    more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
    if (first == 0xe0)
        low = 0xa0; /* shorter otherwise */
    else if (first == 0xed)
        high = 0x9f; /* surrogates */
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f; /* above U+10FFFF */
    for (; more > 0; more--) {
        unsigned next;
        if (at == end)
            return NULL;
        next = (unsigned char)*at++;
        if (next < low || next > high)
            return NULL;
        low = 0x80;
        high = 0xbf;
    }
    return at;
}

/* Reads four hexadecimal digits; at least 0x10000 if they are not there. */
static uint32_t four(const char *at, const char *end)
{
    uint32_t value = 0;
    int i;

    if (end - at < 4)
        return 0x10000;
    for (i = 0; i < 4; i++) {
        unsigned c = (unsigned char)at[i];
        unsigned letter = c | 0x20;
        if (c >= '0' && c <= '9')
            value = value << 4 | (c - '0');
        else if (letter >= 'a' && letter <= 'f')
            value = value << 4 | (letter - 'a' + 10);
        else
            return 0x10000;
    }
    return value;
}

/* Passes over an escape; at is behind the backslash. */
static const char *escape(const char *at, const char *end)
{
    uint32_t unit;

    if (at == end)
        return NULL;
    if (*at != 'u')
        return *at != '\0' && strchr("\"\\/bfnrt", *at) != NULL ? at + 1 : NULL;
    unit = four(at + 1, end);
    if (unit >= 0x10000 || (unit >= 0xdc00 && unit <= 0xdfff))
        return NULL;
    at += 5;
    if (unit < 0xd800 || unit > 0xdfff)
        return at;
    /* A high surrogate: the low one has to follow. */
    if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
        return NULL;
    unit = four(at + 2, end);
    return unit >= 0xdc00 && unit <= 0xdfff ? at + 6 : NULL;
}

const char *bouncer_json_string(const char *at, const char *end)
{
    if (at == end || *at++ != '"')
        return NULL;
    while (at != NULL && at < end) {
        unsigned char c = (unsigned char)*at;
        if (c == '"')
            return at + 1;
        if (c < 0x20)
            return NULL;
        if (c == '\\')
            at = escape(at + 1, end);
        else if (c < 0x80)
            at++;
        else
            at = utf8(at, end);
    }
    return NULL;
}

static const char *digits(const char *at, const char *end)
{
    if (!is_digit(at, end))
        return NULL;
    while (is_digit(at, end))
        at++;
    return at;
}

static const char *number(const char *at, const char *end)
{
    if (*at == '-')
        at++;
    if (at < end && *at == '0')
        at++;
    else
        at = digits(at, end);
    if (at != NULL && at < end && *at == '.')
        at = digits(at + 1, end);
    if (at != NULL && at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-'))
            at++;
        at = digits(at, end);
    }
    return at;
}

/* Passes over a value that is neither an object nor an array. */
static const char *scalar(const char *at, const char *end)
{
    static const char words[3][6] = {"true", "false", "null"};
    size_t i, length;

    if (*at == '"')
        return bouncer_json_string(at, end);
    if (*at == '-' || is_digit(at, end))
        return number(at, end);
    for (i = 0; i < 3; i++) {
        length = strlen(words[i]);
        if ((size_t)(end - at) >= length && memcmp(at, words[i], length) == 0)
            return at + length;
    }
    return NULL;
}

/* Passes over a name and its colon, white space allowed before each. */
static const char *name(const char *at, const char *end)
{
    at = bouncer_json_string(bouncer_json_space(at, end), end);
    if (at == NULL)
        return NULL;
    at = bouncer_json_space(at, end);
    return at < end && *at == ':' ? at + 1 : NULL;
}

const char *bouncer_json_value(const char *at, const char *end, unsigned depth)
{
    uint8_t is_object[BOUNCER_MAX_DEPTH]; /* of each level that is open */
    unsigned level = 0;

    if (depth > BOUNCER_MAX_DEPTH)
        return NULL;
    for (;;) {
        /* A value has to begin here. */
        at = bouncer_json_space(at, end);
        if (at == end)
            return NULL;
        if (*at == '{' || *at == '[') {
            int object = *at == '{';
            if (level == depth)
                return NULL;
            is_object[level++] = (uint8_t)object;
            at = bouncer_json_space(at + 1, end);
            if (at == end)
                return NULL;
            if (*at != (object ? '}' : ']')) {
                if (object && (at = name(at, end)) == NULL)
                    return NULL;
                continue;
            }
        } else {
            at = scalar(at, end);
            if (at == NULL)
                return NULL;
        }
        /* Behind a value, or at the end of an empty object or array. */
        for (;;) {
            int object;
            if (level == 0)
                return at;
            object = is_object[level - 1];
            at = bouncer_json_space(at, end);
            if (at == end)
                return NULL;
            if (*at == (object ? '}' : ']')) {
                level--;
                at++;
                continue;
            }
            if (*at++ != ',')
                return NULL;
            if (object && (at = name(at, end)) == NULL)
                return NULL;
            break;
        }
    }
}

/* Passes over a string of an accepted value: nothing has to be checked. */
static const char *over_string(const char *at)
{
    for (at++; *at != '"'; at++)
        if (*at == '\\')
            at++;
    return at + 1;
}

/*
 * The next character of an accepted string, its escapes undone. Unlike the whole, a pair of surrogates and the character
 * that it stands for have to come out the same.
 */
static uint32_t character(const char **at, const char *end)
{
    static const char from[] = "bfnrt";
    static const char to[] = "\b\f\n\r\t";
    const char *p = *at;
    uint32_t c = (unsigned char)*p++;
    const char *found;

    if (c == '\\') {
        c = (unsigned char)*p++;
        if (c == 'u') {
            c = four(p, end);
            p += 4;
            if (c >= 0xd800 && c <= 0xdbff) {
                c = 0x10000 + ((c - 0xd800) << 10) + (four(p + 2, end) - 0xdc00);
                p += 6;
            }
        } else if ((found = strchr(from, (int)c)) != NULL) {
            c = (unsigned char)to[found - from];
        }
    } else if (c >= 0x80) {
        unsigned more = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        c &= 0x3fu >> more;
        for (; more > 0; more--)
            c = c << 6 | ((unsigned char)*p++ & 0x3f);
    }
    *at = p;
    return c;
}

int bouncer_json_same(bouncer_text string, bouncer_text other)
{
    const char *a = string.data, *a_end = a + string.length;
    const char *b = other.data, *b_end = b + other.length;

    while (a < a_end && b < b_end)
        if (character(&a, a_end) != character(&b, b_end))
            return 0;
    return a == a_end && b == b_end;
}

/*
 * Finds the next name of the object that at is in, from behind a value or from behind the brace; *at is then the quote
 * before it. Returns 0 at the object's end. The value is accepted, so a string is a name if no value is due.
 */
static int next_name(const char **at)
{
    unsigned level = 0;
    const char *p = *at;

    for (;; p++) {
        switch (*p) {
        case '{':
        case '[':
            level++;
            break;
        case '}':
        case ']':
            if (level == 0)
                return 0;
            level--;
            break;
        case '"':
            if (level == 0) {
                const char *behind = over_string(p), *colon = behind;
                while (*colon == ' ' || *colon == '\t' || *colon == '\n' || *colon == '\r')
                    colon++;
                if (*colon == ':') {
                    *at = p;
                    return 1;
                }
                p = behind - 1;
            } else {
                p = over_string(p) - 1;
            }
            break;
        default:
            break;
        }
    }
}

/* Passes over a name and returns it without its quotes. */
static bouncer_text take_name(const char **at)
{
    bouncer_text text;

    text.data = *at + 1;
    *at = over_string(*at);
    text.length = (size_t)(*at - text.data) - 1;
    return text;
}

int bouncer_json_unique(const char *at, const char *end)
{
    while (at < end) {
        if (*at == '"') {
            at = over_string(at);
            continue;
        }
        if (*at++ == '{') {
            const char *first = at;
            while (next_name(&first)) {
                bouncer_text one = take_name(&first);
                const char *second = first;
                while (next_name(&second))
                    if (bouncer_json_same(one, take_name(&second)))
                        return 0;
            }
        }
    }
    return 1;
}
