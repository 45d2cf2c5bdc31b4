/* Signing, the memory of commands, and answers. */
#include "bouncer_device.h"

#include <string.h>

#include "bouncer_values.h"

/* The order n of P-256. */
static const uint8_t order[32] = {0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff,
                                  0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17,
                                  0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51};

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
    char digits[BOUNCER_MAX_TIME_DIGITS];
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
    if (!bouncer_is_device_id(device->id))
        return BOUNCER_DEVICE_ID;
    if (timestamp < 0 || timestamp > BOUNCER_MAX_TIME)
        return BOUNCER_TIMESTAMP;
    if (!bouncer_decode_uuid(message_id, id) || message_id.data[BOUNCER_VERSION_AT] == '8')
        return BOUNCER_MESSAGE_ID;
    if (!bouncer_is_usable(device, 1))
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
    payload = bouncer_trim(payload);
    before = strlen("{\"device_id\":\"") + device->id.length + strlen("\",\"timestamp\":") + time.length +
             strlen(",\"message_id\":\"") + message_id.length + strlen("\",\"payload\":");
    total = before + strlen(",\"signature\":\"") + 2 * signature_length + strlen("\"}");
    if (payload.length > SIZE_MAX - total ||
        total + payload.length > (device->max_message != 0 ? device->max_message : BOUNCER_MAX_MESSAGE))
        return BOUNCER_TOO_LARGE;
    total += payload.length;
    if (!bouncer_is_json(payload, BOUNCER_MAX_DEPTH - 1))
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
    if (device->algorithm == BOUNCER_ECDSA_P256 && bouncer_is_high(signature + 32))
        negate(signature + 32);

    at = puts_at(out, "{\"device_id\":\"");
    at = put(at, device->id);
    at = puts_at(at, "\",\"timestamp\":");
    at = put(at, time);
    at = puts_at(at, ",\"message_id\":\"");
    at = put(at, message_id);
    (void)puts_at(at, "\",\"payload\":");
    at = puts_at(body + payload.length, ",\"signature\":\"");
    at = bouncer_encode_hex(signature, signature_length, at);
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
        memory->floor < 0 || expires < 0 || !bouncer_decode_uuid(id, entry.id))
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
    if (!bouncer_decode_uuid(command_id, id))
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
        result = bouncer_trim(result);
        total += strlen(",\"result\":");
        if (result.length > SIZE_MAX - total ||
            total + result.length > (device->max_message != 0 ? device->max_message : BOUNCER_MAX_MESSAGE))
            return BOUNCER_TOO_LARGE;
        total += result.length;
        if (!bouncer_is_json(result, BOUNCER_MAX_DEPTH - 2))
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
