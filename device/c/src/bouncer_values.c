/* Checks of single values and of credentials. */
#include "bouncer_values.h"

#include <string.h>

#include "bouncer_json.h"

#define MAX_SECRETS 8

bouncer_text bouncer_string(const char *string)
{
    bouncer_text text;

    text.data = string;
    text.length = string == NULL ? 0 : strlen(string);
    return text;
}

const char *bouncer_error_name(bouncer_error error)
{
    /* In the order of bouncer_error, each with its NUL. */
    static const char names[] = "ok\0device_id\0timestamp\0message_id\0payload\0too_large\0malformed\0foreign\0forged\0expired\0"
                                "repeated\0bad_signature\0credential\0crypto\0unsupported\0buffer\0argument\0unknown";
    const char *at = names;
    unsigned i = (unsigned)error;

    for (i = i > (unsigned)BOUNCER_ARGUMENT ? (unsigned)BOUNCER_ARGUMENT + 1 : i; i > 0; i--)
        at += strlen(at) + 1;
    return at;
}

int bouncer_is_device_id(bouncer_text id)
{
    size_t i;

    if (id.data == NULL || id.length < 1 || id.length > BOUNCER_MAX_DEVICE_ID)
        return 0;
    for (i = 0; i < id.length; i++) {
        unsigned char c = (unsigned char)id.data[i], letter = c | 0x20;
        if (!(letter >= 'a' && letter <= 'z') && !(c >= '0' && c <= ':') && c != '.' && c != '_' && c != '-')
            return 0;
    }
    return 1;
}

/* The value of a hexadecimal digit, or -1. */
static int hex_digit(char digit)
{
    unsigned char c = (unsigned char)digit, letter = c | 0x20;

    if (c >= '0' && c <= '9')
        return c - '0';
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

/* Decodes hexadecimal digits into at most size bytes; 0 if there are others, or the number is odd or too large. */
int bouncer_decode_hex(bouncer_text text, uint8_t *out, size_t size)
{
    size_t i;

    if (text.length % 2 != 0 || text.length / 2 > size)
        return 0;
    for (i = 0; i < text.length; i += 2) {
        int high = hex_digit(text.data[i]), low = hex_digit(text.data[i + 1]);
        if (high < 0 || low < 0)
            return 0;
        out[i / 2] = (uint8_t)(high << 4 | low);
    }
    return 1;
}

char *bouncer_encode_hex(const uint8_t *data, size_t length, char *out)
{
    size_t i;

    for (i = 0; i < length; i++) {
        *out++ = "0123456789abcdef"[data[i] >> 4];
        *out++ = "0123456789abcdef"[data[i] & 15];
    }
    return out;
}

/* Decodes a UUID of 36 characters; 0 if it is none. */
int bouncer_decode_uuid(bouncer_text text, uint8_t id[16])
{
    size_t i, n = 0;

    if (text.data == NULL || text.length != BOUNCER_UUID_LENGTH)
        return 0;
    for (i = 0; i < BOUNCER_UUID_LENGTH; i++) {
        bouncer_text pair;
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text.data[i] != '-')
                return 0;
            continue;
        }
        pair.data = text.data + i++;
        pair.length = 2;
        if (!bouncer_decode_hex(pair, id + n++, 1))
            return 0;
    }
    return 1;
}

int bouncer_same_id(bouncer_text a, bouncer_text b)
{
    uint8_t one[16], two[16];

    return bouncer_decode_uuid(a, one) && bouncer_decode_uuid(b, two) && memcmp(one, two, sizeof one) == 0;
}

void bouncer_uuid(const uint8_t random[16], char out[BOUNCER_UUID_LENGTH + 1])
{
    size_t i;

    for (i = 0; i < 16; i++) {
        uint8_t byte = random[i];
        if (i == 6)
            byte = (uint8_t)((byte & 0x0f) | 0x40);
        if (i == 8)
            byte = (uint8_t)((byte & 0x3f) | 0x80);
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *out++ = '-';
        out = bouncer_encode_hex(&byte, 1, out);
    }
    *out = '\0';
}

/* Reads digits alone, 0 to BOUNCER_MAX_TIME, without a leading zero. */
const char *bouncer_read_time(const char *at, const char *end, int64_t *value)
{
    const char *first = at;
    int64_t n = 0;

    while (at < end && *at >= '0' && *at <= '9') {
        n = n * 10 + (*at++ - '0');
        if (n > BOUNCER_MAX_TIME)
            return NULL;
    }
    if (at == first || (*first == '0' && at - first > 1))
        return NULL;
    *value = n;
    return at;
}

/* Passes over one character of white space as Unicode has it, or a NUL; returns 0 if there is another. */
static size_t blank(const unsigned char *at, size_t length)
{
    unsigned third;

    if (*at == 0 || *at == ' ' || (*at >= '\t' && *at <= '\r'))
        return 1;
    if (length >= 2 && at[0] == 0xc2 && (at[1] == 0x85 || at[1] == 0xa0))
        return 2;
    if (length < 3)
        return 0;
    third = at[2];
    if (at[0] == 0xe1)
        return at[1] == 0x9a && third == 0x80 ? 3 : 0; /* U+1680 */
    if (at[0] == 0xe3)
        return at[1] == 0x80 && third == 0x80 ? 3 : 0; /* U+3000 */
    if (at[0] != 0xe2)
        return 0;
    if (at[1] == 0x81)
        return third == 0x9f ? 3 : 0; /* U+205F */
    return at[1] == 0x80 && (third <= 0x8a || third == 0xa8 || third == 0xa9 || third == 0xaf) ? 3 : 0;
}

static int is_secret(bouncer_text secret)
{
    size_t i = 0;

    if (secret.data == NULL)
        return 0;
    while (i < secret.length) {
        size_t n = blank((const unsigned char *)secret.data + i, secret.length - i);
        if (n == 0)
            return 1;
        i += n;
    }
    return 0;
}

/* Whether the credential can sign, or verify. A device with one bad secret is not used at all. */
int bouncer_is_usable(const bouncer_device *device, int signing)
{
    const bouncer_crypto *crypto = device->crypto;
    size_t i;

    if (crypto == NULL)
        return 0;
    if (device->algorithm == BOUNCER_HMAC_SHA256) {
        if (crypto->hmac == NULL || device->secrets == NULL || device->secret_count < 1 || device->secret_count > MAX_SECRETS)
            return 0;
        for (i = 0; i < device->secret_count; i++)
            if (!is_secret(device->secrets[i]))
                return 0;
        return 1;
    }
    if (device->algorithm != BOUNCER_ED25519 && device->algorithm != BOUNCER_ECDSA_P256)
        return 0;
    if (signing)
        return crypto->sign != NULL;
    return device->key_count == 0 ||
           (crypto->verify != NULL && device->keys != NULL && device->key_count <= BOUNCER_MAX_KEYS);
}

/* Half of the order of P-256, rounded down. */
static const uint8_t half_order[32] = {0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff,
                                       0xff, 0xff, 0xff, 0xff, 0xff, 0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b,
                                       0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8};

int bouncer_is_high(const uint8_t s[32])
{
    return memcmp(s, half_order, 32) > 0;
}

bouncer_text bouncer_trim(bouncer_text text)
{
    const char *end = text.data + text.length;
    const char *at = bouncer_json_space(text.data, end);

    while (end > at && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\n' || end[-1] == '\r'))
        end--;
    text.data = at;
    text.length = (size_t)(end - at);
    return text;
}

/* Whether a text without white space around it is one JSON value that the gateway accepts. */
int bouncer_is_json(bouncer_text text, unsigned depth)
{
    const char *end = text.data + text.length;

    return bouncer_json_value(text.data, end, depth) == end && bouncer_json_unique(text.data, end);
}
