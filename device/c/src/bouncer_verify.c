/* Verifying commands and messages, and reading notices. */
#include "bouncer_device.h"

#include <string.h>

#include "bouncer_json.h"
#include "bouncer_values.h"

#define MAX_HEAD (BOUNCER_MAX_DEVICE_ID + BOUNCER_MAX_TIME_DIGITS + BOUNCER_UUID_LENGTH)

typedef struct envelope {
    bouncer_text device_id, timestamp, message_id, payload, signature;
    int64_t time;
} envelope;

static int same_text(bouncer_text text, const char *string)
{
    return text.length == strlen(string) && memcmp(text.data, string, text.length) == 0;
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
    if (!bouncer_decode_hex(e->signature, signature, sizeof signature))
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
    if (e->signature.length != 128 || (device->algorithm == BOUNCER_ECDSA_P256 && bouncer_is_high(signature + 32)))
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
            at = bouncer_read_time(at, end, &e->time);
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
    return seen == 31 && bouncer_json_space(at + 1, end) == end && bouncer_is_device_id(e->device_id) &&
           bouncer_decode_uuid(e->message_id, id) && (e->signature.length == 64 || e->signature.length == 128) &&
           bouncer_decode_hex(e->signature, bytes, sizeof bytes);
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
            at = bouncer_read_time(at, end, &command->expires);
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
    if (!bouncer_is_device_id(device->id))
        return BOUNCER_DEVICE_ID;
    if (!bouncer_is_usable(device, 0))
        return BOUNCER_CREDENTIAL;

    if (message == NULL || length > BOUNCER_MAX_COMMAND || !read_envelope(message, length, &e))
        return BOUNCER_MALFORMED;
    if (e.device_id.length != device->id.length || memcmp(e.device_id.data, device->id.data, device->id.length) != 0)
        return BOUNCER_FOREIGN;
    error = verify(device, &e);
    if (error != BOUNCER_OK)
        return error;
    if (e.message_id.data[BOUNCER_VERSION_AT] != '8' || !read_command(e.payload, &found))
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
    if (!bouncer_is_usable(device, 0))
        return BOUNCER_CREDENTIAL;
    memset(&e, 0, sizeof e);
    if (message == NULL || length > (device->max_message != 0 ? device->max_message : BOUNCER_MAX_MESSAGE) ||
        !read_envelope(message, length, &e) || !bouncer_json_unique(e.payload.data, e.payload.data + e.payload.length))
        return BOUNCER_MALFORMED;
    error = verify(device, &e);
    return error == BOUNCER_FORGED ? BOUNCER_BAD_SIGNATURE : error;
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
    /* No signature protects it, and looking for names that occur twice takes a time that grows faster than its length. */
    if (message == NULL || length > BOUNCER_MAX_NOTICE)
        return BOUNCER_MALFORMED;
    all.data = message;
    all.length = length;
    all = bouncer_trim(all);
    at = all.data;
    end = at + all.length;
    if (!bouncer_is_json(all, BOUNCER_MAX_DEPTH) || *at++ != '{')
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
            if (bouncer_read_time(value, end, &found.server_time) != at)
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
            if (!bouncer_decode_uuid(text, id))
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
