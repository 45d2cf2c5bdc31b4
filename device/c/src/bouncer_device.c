/* Signing, verifying, the memory of commands, answers and notices. */
#include "bouncer_device.h"

#include <string.h>

#include "bouncer_json.h"

#define MAX_TIME_DIGITS 16
#define MAX_HEAD (BOUNCER_MAX_DEVICE_ID + MAX_TIME_DIGITS + BOUNCER_UUID_LENGTH)
#define MAX_SECRETS 8

/* Places of the version in a UUID of 36 characters. */
#define VERSION_AT 14

typedef struct envelope {
    bouncer_text device_id, timestamp, message_id, payload, signature;
    int64_t time;
} envelope;

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

/* Checks of single values. */

static int is_device_id(bouncer_text id)
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
static int decode_hex(bouncer_text text, uint8_t *out, size_t size)
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

static char *encode_hex(const uint8_t *data, size_t length, char *out)
{
    size_t i;

    for (i = 0; i < length; i++) {
        *out++ = "0123456789abcdef"[data[i] >> 4];
        *out++ = "0123456789abcdef"[data[i] & 15];
    }
    return out;
}

/* Decodes a UUID of 36 characters; 0 if it is none. */
static int decode_uuid(bouncer_text text, uint8_t id[16])
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
        if (!decode_hex(pair, id + n++, 1))
            return 0;
    }
    return 1;
}

int bouncer_same_id(bouncer_text a, bouncer_text b)
{
    uint8_t one[16], two[16];

    return decode_uuid(a, one) && decode_uuid(b, two) && memcmp(one, two, sizeof one) == 0;
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
        out = encode_hex(&byte, 1, out);
    }
    *out = '\0';
}

static int same_text(bouncer_text text, const char *string)
{
    return text.length == strlen(string) && memcmp(text.data, string, text.length) == 0;
}

/* Reads digits alone, 0 to BOUNCER_MAX_TIME, without a leading zero. */
static const char *read_time(const char *at, const char *end, int64_t *value)
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

/* Reads a string up to the next quote. What it may hold is checked later; an escape is never part of it. */
static const char *read_plain(const char *at, const char *end, bouncer_text *text)
{
    const char *first;

    if (at == end || *at != '"')
        return NULL;
    for (first = ++at; at < end; at++) {
        if (*at == '"') {
            text->data = first;
            text->length = (size_t)(at - first);
            return at + 1;
        }
    }
    return NULL;
}

/* Credentials. */

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
static int is_usable(const bouncer_device *device, int signing)
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

/* The order n of P-256, and its half rounded down. */
static const uint8_t order[32] = {0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff,
                                  0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17,
                                  0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51};
static const uint8_t half_order[32] = {0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff,
                                       0xff, 0xff, 0xff, 0xff, 0xff, 0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b,
                                       0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8};

static int is_high(const uint8_t s[32])
{
    return memcmp(s, half_order, 32) > 0;
}

/* Makes n - s of s, which is at most n. */
static void negate(uint8_t s[32])
{
    int i, borrow = 0;

    for (i = 31; i >= 0; i--) {
        int difference = order[i] - s[i] - borrow;
        borrow = difference < 0;
        s[i] = (uint8_t)difference;
    }
}

/* Compares in the same time whatever differs. */
static int same_mac(const uint8_t a[32], const uint8_t b[32])
{
    volatile uint8_t difference = 0;
    int i;

    for (i = 0; i < 32; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return difference == 0;
}

/* Whether a secret or key of the device verifies the signature of an envelope: BOUNCER_OK, or why not. */
static bouncer_error verify(const bouncer_device *device, const envelope *e)
{
    uint8_t head[MAX_HEAD], signature[64], mac[32];
    bouncer_signed bytes;
    size_t i, at = 0;
    int good = 0;
    bouncer_error error = BOUNCER_FORGED;

    memcpy(head, e->device_id.data, e->device_id.length);
    at += e->device_id.length;
    memcpy(head + at, e->timestamp.data, e->timestamp.length);
    at += e->timestamp.length;
    memcpy(head + at, e->message_id.data, e->message_id.length);
    at += e->message_id.length;
    bytes.head = head;
    bytes.head_length = at;
    bytes.tail = (const uint8_t *)e->payload.data;
    bytes.tail_length = e->payload.length;
    if (!decode_hex(e->signature, signature, sizeof signature))
        return BOUNCER_FORGED;

    if (device->algorithm == BOUNCER_HMAC_SHA256) {
        if (e->signature.length != 64)
            return BOUNCER_FORGED;
        for (i = 0; i < device->secret_count; i++) {
            memset(mac, 0, sizeof mac);
            if (device->crypto->hmac(device->crypto->hmac_context, device->secrets[i], &bytes, mac) == 0)
                good |= same_mac(mac, signature);
        }
        return good ? BOUNCER_OK : BOUNCER_FORGED;
    }
    if (e->signature.length != 128 || (device->algorithm == BOUNCER_ECDSA_P256 && is_high(signature + 32)))
        return BOUNCER_FORGED;
    for (i = 0; i < device->key_count; i++) {
        int result;
        if (device->keys[i].algorithm != device->algorithm)
            continue;
        result = device->crypto->verify(device->crypto->verify_context, &device->keys[i], &bytes, signature);
        if (result == 0)
            return BOUNCER_OK;
        if (result == BOUNCER_UNSUPPORTED)
            error = BOUNCER_UNSUPPORTED;
    }
    return error;
}

/* Reads a message: one object with the five members, each once, and nothing else. */
static int read_envelope(const char *message, size_t length, envelope *e)
{
    const char *at = message, *end = message + length;
    unsigned seen = 0, bit;
    uint8_t id[16], bytes[64];

    at = bouncer_json_space(at, end);
    if (at == end || *at++ != '{')
        return 0;
    for (;;) {
        bouncer_text name;
        at = read_plain(bouncer_json_space(at, end), end, &name);
        if (at == NULL)
            return 0;
        at = bouncer_json_space(at, end);
        if (at == end || *at++ != ':')
            return 0;
        at = bouncer_json_space(at, end);
        if (same_text(name, "device_id")) {
            bit = 1;
            at = read_plain(at, end, &e->device_id);
        } else if (same_text(name, "timestamp")) {
            bit = 2;
            e->timestamp.data = at;
            at = read_time(at, end, &e->time);
            if (at != NULL)
                e->timestamp.length = (size_t)(at - e->timestamp.data);
        } else if (same_text(name, "message_id")) {
            bit = 4;
            at = read_plain(at, end, &e->message_id);
        } else if (same_text(name, "payload")) {
            bit = 8;
            e->payload.data = at;
            at = bouncer_json_value(at, end, BOUNCER_MAX_DEPTH - 1);
            if (at != NULL)
                e->payload.length = (size_t)(at - e->payload.data);
        } else if (same_text(name, "signature")) {
            bit = 16;
            at = read_plain(at, end, &e->signature);
        } else {
            return 0;
        }
        if (at == NULL || (seen & bit) != 0)
            return 0;
        seen |= bit;
        at = bouncer_json_space(at, end);
        if (at == end)
            return 0;
        if (*at == '}')
            break;
        if (*at++ != ',')
            return 0;
    }
    return seen == 31 && bouncer_json_space(at + 1, end) == end && is_device_id(e->device_id) &&
           decode_uuid(e->message_id, id) && (e->signature.length == 64 || e->signature.length == 128) &&
           decode_hex(e->signature, bytes, sizeof bytes);
}

/* Reads the payload of a command, which is JSON: an object of command and expires. */
static int read_command(bouncer_text payload, bouncer_command *command)
{
    const char *at = payload.data, *end = at + payload.length;
    unsigned seen = 0, bit;

    if (*at++ != '{')
        return 0;
    for (;;) {
        bouncer_text name;
        at = read_plain(bouncer_json_space(at, end), end, &name);
        if (at == NULL)
            return 0;
        at = bouncer_json_space(at, end);
        if (at == end || *at++ != ':')
            return 0;
        at = bouncer_json_space(at, end);
        if (same_text(name, "command")) {
            bit = 1;
            command->command.data = at;
            at = bouncer_json_value(at, end, BOUNCER_MAX_DEPTH - 2);
            if (at != NULL)
                command->command.length = (size_t)(at - command->command.data);
        } else if (same_text(name, "expires")) {
            bit = 2;
            at = read_time(at, end, &command->expires);
        } else {
            return 0;
        }
        if (at == NULL || (seen & bit) != 0)
            return 0;
        seen |= bit;
        at = bouncer_json_space(at, end);
        if (at == end)
            return 0;
        if (*at == '}')
            return seen == 3;
        if (*at++ != ',')
            return 0;
    }
}

bouncer_error bouncer_verify_command(const bouncer_device *device, const char *message, size_t length, int64_t now,
                                     bouncer_command *command)
{
    envelope e;
    bouncer_command found;
    bouncer_error error;

    if (command == NULL)
        return BOUNCER_ARGUMENT;
    memset(command, 0, sizeof *command);
    memset(&e, 0, sizeof e);
    memset(&found, 0, sizeof found);
    if (device == NULL || (message == NULL && length > 0))
        return BOUNCER_ARGUMENT;
    if (!is_device_id(device->id))
        return BOUNCER_DEVICE_ID;
    if (!is_usable(device, 0))
        return BOUNCER_CREDENTIAL;

    if (message == NULL || length > BOUNCER_MAX_COMMAND || !read_envelope(message, length, &e))
        return BOUNCER_MALFORMED;
    if (e.device_id.length != device->id.length || memcmp(e.device_id.data, device->id.data, device->id.length) != 0)
        return BOUNCER_FOREIGN;
    error = verify(device, &e);
    if (error != BOUNCER_OK)
        return error;
    if (e.message_id.data[VERSION_AT] != '8' || !read_command(e.payload, &found))
        return BOUNCER_MALFORMED;
    /* Takes a time that grows faster than the message, so it is done for the gateway's commands only. */
    if (!bouncer_json_unique(e.payload.data, e.payload.data + e.payload.length))
        return BOUNCER_MALFORMED;
    if (now >= 0 && now >= found.expires)
        return BOUNCER_EXPIRED;
    found.id = e.message_id;
    found.timestamp = e.time;
    *command = found;
    return BOUNCER_OK;
}

bouncer_error bouncer_verify_message(const bouncer_device *device, const char *message, size_t length)
{
    envelope e;
    bouncer_error error;

    if (device == NULL || (message == NULL && length > 0))
        return BOUNCER_ARGUMENT;
    if (!is_usable(device, 0))
        return BOUNCER_CREDENTIAL;
    memset(&e, 0, sizeof e);
    if (message == NULL || length > (device->max_message != 0 ? device->max_message : BOUNCER_MAX_MESSAGE) ||
        !read_envelope(message, length, &e) || !bouncer_json_unique(e.payload.data, e.payload.data + e.payload.length))
        return BOUNCER_MALFORMED;
    error = verify(device, &e);
    return error == BOUNCER_FORGED ? BOUNCER_BAD_SIGNATURE : error;
}

/* Signing. */

static bouncer_text trim(bouncer_text text)
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
static int is_json(bouncer_text text, unsigned depth)
{
    const char *end = text.data + text.length;

    return bouncer_json_value(text.data, end, depth) == end && bouncer_json_unique(text.data, end);
}

static char *put(char *at, bouncer_text text)
{
    memcpy(at, text.data, text.length);
    return at + text.length;
}

static char *puts_at(char *at, const char *string)
{
    return put(at, bouncer_string(string));
}

bouncer_error bouncer_sign(const bouncer_device *device, int64_t timestamp, bouncer_text message_id, bouncer_text payload,
                           char *out, size_t size, size_t *length)
{
    char digits[MAX_TIME_DIGITS];
    uint8_t id[16], signature[64];
    bouncer_text time;
    bouncer_signed bytes;
    size_t total, signature_length = 32, before;
    char *at, *body;
    int failed;

    if (length == NULL)
        return BOUNCER_ARGUMENT;
    *length = 0;
    if (device == NULL || out == NULL)
        return BOUNCER_ARGUMENT;
    if (!is_device_id(device->id))
        return BOUNCER_DEVICE_ID;
    if (timestamp < 0 || timestamp > BOUNCER_MAX_TIME)
        return BOUNCER_TIMESTAMP;
    if (!decode_uuid(message_id, id) || message_id.data[VERSION_AT] == '8')
        return BOUNCER_MESSAGE_ID;
    if (!is_usable(device, 1))
        return BOUNCER_CREDENTIAL;
    if (payload.data == NULL)
        return BOUNCER_PAYLOAD;

    time.data = digits + sizeof digits;
    time.length = 0;
    do {
        digits[sizeof digits - ++time.length] = (char)('0' + timestamp % 10);
        time.data--;
        timestamp /= 10;
    } while (timestamp > 0);
    if (device->algorithm != BOUNCER_HMAC_SHA256)
        signature_length = 64;

    /* The length first: what is too large is not looked at. */
    payload = trim(payload);
    before = strlen("{\"device_id\":\"") + device->id.length + strlen("\",\"timestamp\":") + time.length +
             strlen(",\"message_id\":\"") + message_id.length + strlen("\",\"payload\":");
    total = before + strlen(",\"signature\":\"") + 2 * signature_length + strlen("\"}");
    if (payload.length > SIZE_MAX - total ||
        total + payload.length > (device->max_message != 0 ? device->max_message : BOUNCER_MAX_MESSAGE))
        return BOUNCER_TOO_LARGE;
    total += payload.length;
    if (!is_json(payload, BOUNCER_MAX_DEPTH - 1))
        return BOUNCER_PAYLOAD;
    if (total > size)
        return BOUNCER_BUFFER;

    /*
     * The payload is put where the message has it, and the rest of what is signed directly in front of it, so the signed bytes
     * are in one piece. There is room, for the message has more in front of its payload.
     */
    body = out + before;
    memmove(body, payload.data, payload.length);
    bytes.head_length = device->id.length + time.length + message_id.length;
    bytes.tail_length = payload.length;
    at = body - bytes.head_length;
    bytes.head = (const uint8_t *)at;
    bytes.tail = (const uint8_t *)body;
    (void)put(put(put(at, device->id), time), message_id);
    if (device->algorithm == BOUNCER_HMAC_SHA256)
        failed = device->crypto->hmac(device->crypto->hmac_context, device->secrets[0], &bytes, signature);
    else
        failed = device->crypto->sign(device->crypto->sign_context, device->algorithm, &bytes, signature);
    if (failed != 0) {
        memset(out, 0, before);
        return failed == BOUNCER_UNSUPPORTED ? BOUNCER_UNSUPPORTED : BOUNCER_CRYPTO;
    }
    if (device->algorithm == BOUNCER_ECDSA_P256 && is_high(signature + 32))
        negate(signature + 32);

    at = puts_at(out, "{\"device_id\":\"");
    at = put(at, device->id);
    at = puts_at(at, "\",\"timestamp\":");
    at = put(at, time);
    at = puts_at(at, ",\"message_id\":\"");
    at = put(at, message_id);
    (void)puts_at(at, "\",\"payload\":");
    at = puts_at(body + payload.length, ",\"signature\":\"");
    at = encode_hex(signature, signature_length, at);
    (void)puts_at(at, "\"}");
    *length = total;
    return BOUNCER_OK;
}

/* The memory of commands. */

bouncer_error bouncer_memory_take(bouncer_memory *memory, bouncer_text id, int64_t expires)
{
    bouncer_memory_entry entry;
    size_t i, lowest = 0;

    memset(&entry, 0, sizeof entry);
    entry.expires = expires;
    if (memory == NULL || memory->entries == NULL || memory->capacity == 0 || memory->count > memory->capacity ||
        memory->floor < 0 || expires < 0 || !decode_uuid(id, entry.id))
        return BOUNCER_ARGUMENT;
    for (i = 0; i < memory->count; i++) {
        if (memcmp(memory->entries[i].id, entry.id, sizeof entry.id) == 0)
            return BOUNCER_REPEATED;
        if (memory->entries[i].expires < memory->entries[lowest].expires)
            lowest = i;
    }
    if (expires <= memory->floor)
        return BOUNCER_EXPIRED;
    if (memory->count < memory->capacity) {
        memory->entries[memory->count++] = entry;
        return BOUNCER_OK;
    }
    /* Full: the lowest leaves, which may be the new one. */
    if (memory->entries[lowest].expires < expires) {
        int64_t gone = memory->entries[lowest].expires;
        memory->entries[lowest] = entry;
        expires = gone;
    }
    if (expires > memory->floor)
        memory->floor = expires;
    return BOUNCER_OK;
}

bouncer_error bouncer_answer(const bouncer_device *device, bouncer_text command_id, bouncer_status status, bouncer_text result,
                             char *out, size_t size, size_t *length)
{
    uint8_t id[16];
    size_t total;
    const char *word;
    char *at;

    if (length == NULL)
        return BOUNCER_ARGUMENT;
    *length = 0;
    if (device == NULL || out == NULL)
        return BOUNCER_ARGUMENT;
    if (!decode_uuid(command_id, id))
        return BOUNCER_MESSAGE_ID;
    switch (status) {
    case BOUNCER_SUCCEEDED:
        word = "succeeded";
        break;
    case BOUNCER_FAILED:
        word = "failed";
        break;
    case BOUNCER_REJECTED:
        word = "rejected";
        break;
    default:
        return BOUNCER_ARGUMENT;
    }
    total = strlen("{\"command_id\":\"\",\"status\":\"\"}") + command_id.length + strlen(word);
    if (result.data != NULL) {
        result = trim(result);
        total += strlen(",\"result\":");
        if (result.length > SIZE_MAX - total ||
            total + result.length > (device->max_message != 0 ? device->max_message : BOUNCER_MAX_MESSAGE))
            return BOUNCER_TOO_LARGE;
        total += result.length;
        if (!is_json(result, BOUNCER_MAX_DEPTH - 2))
            return BOUNCER_PAYLOAD;
    }
    if (total > size)
        return BOUNCER_BUFFER;

    at = puts_at(out, "{\"command_id\":\"");
    at = put(at, command_id);
    at = puts_at(at, "\",\"status\":\"");
    at = puts_at(at, word);
    at = puts_at(at, "\"");
    if (result.data != NULL)
        at = put(puts_at(at, ",\"result\":"), result);
    (void)puts_at(at, "}");
    *length = total;
    return BOUNCER_OK;
}

bouncer_error bouncer_read_notice(const char *message, size_t length, bouncer_notice *notice)
{
    static const char names[3][12] = {"message_id", "reason", "server_time"};
    bouncer_notice found;
    bouncer_text all;
    const char *at, *end;
    unsigned seen = 0;
    uint8_t id[16];

    if (notice == NULL)
        return BOUNCER_ARGUMENT;
    memset(notice, 0, sizeof *notice);
    memset(&found, 0, sizeof found);
    if (message == NULL || length > BOUNCER_MAX_COMMAND)
        return BOUNCER_MALFORMED;
    all.data = message;
    all.length = length;
    all = trim(all);
    at = all.data;
    end = at + all.length;
    if (!is_json(all, BOUNCER_MAX_DEPTH) || *at++ != '{')
        return BOUNCER_MALFORMED;
    /* It is JSON without a name twice: what has to be there is there. */
    while (*(at = bouncer_json_space(at, end)) != '}') {
        const char *value;
        bouncer_text name, text;
        unsigned i;

        if (*at == ',')
            at = bouncer_json_space(at + 1, end);
        name.data = at + 1;
        at = bouncer_json_string(at, end);
        name.length = (size_t)(at - name.data) - 1;
        value = bouncer_json_space(bouncer_json_space(at, end) + 1, end);
        at = bouncer_json_value(value, end, BOUNCER_MAX_DEPTH);
        for (i = 0; i < 3 && !bouncer_json_same(name, bouncer_string(names[i])); i++)
            continue;
        if (i == 3)
            continue;
        seen |= 1u << i;
        if (i == 2) {
            if (read_time(value, end, &found.server_time) != at)
                return BOUNCER_MALFORMED;
            continue;
        }
        if (i == 0 && *value == 'n')
            continue;
        if (*value != '"')
            return BOUNCER_MALFORMED;
        text.data = value + 1;
        text.length = (size_t)(at - text.data) - 1;
        if (i == 0) {
            if (!decode_uuid(text, id))
                return BOUNCER_MALFORMED;
            found.message_id = text;
        } else {
            found.reason = text;
        }
    }
    if (seen != 7)
        return BOUNCER_MALFORMED;
    *notice = found;
    return BOUNCER_OK;
}
