/*
 * Fuzzes the check of payloads: what the core signs, it verifies; and it decides as the plain reader below does, which is
 * recursive, keeps the names of an object in memory, and shares no code with the core.
 */
#include <stdlib.h>
#include <string.h>

#include "bouncer_device.h"

static void require(int condition)
{
    if (!condition)
        abort();
}

/* A sum of the bytes in place of an HMAC: quick, and different for most changes. */
static int sum(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    size_t i;
    uint32_t n = 0;

    (void)context;
    (void)secret;
    for (i = 0; i < bytes->head_length; i++)
        n = n * 31 + bytes->head[i];
    for (i = 0; i < bytes->tail_length; i++)
        n = n * 31 + bytes->tail[i];
    for (i = 0; i < 32; i++)
        mac[i] = (uint8_t)(n >> (i % 4 * 8));
    return 0;
}

struct reader {
    const unsigned char *at, *end;
};

/* A name as code points. */
struct name {
    uint32_t *points;
    size_t count;
};

static void spaces(struct reader *r)
{
    while (r->at < r->end && (*r->at == 32 || *r->at == 9 || *r->at == 10 || *r->at == 13))
        r->at++;
}

static int next(struct reader *r)
{
    return r->at < r->end ? *r->at++ : -1;
}

static int peek(const struct reader *r)
{
    return r->at < r->end ? *r->at : -1;
}

static long hex4(struct reader *r)
{
    long value = 0;
    int i;

    for (i = 0; i < 4; i++) {
        static const char low[] = "0123456789abcdef", high[] = "0123456789ABCDEF";
        int c = next(r), k;
        for (k = 0; k < 16 && c != low[k] && c != high[k]; k++)
            continue;
        if (k == 16)
            return -1;
        value = value * 16 + k;
    }
    return value;
}

static long code_point(struct reader *r)
{
    int c = next(r), more;
    long value, least;

    if (c < 32)
        return -1;
    if (c == '\\') {
        c = next(r);
        switch (c) {
        case '"':
        case '\\':
        case '/':
            return c;
        case 'b':
            return 8;
        case 'f':
            return 12;
        case 'n':
            return 10;
        case 'r':
            return 13;
        case 't':
            return 9;
        case 'u':
            value = hex4(r);
            if (value >= 0xd800 && value < 0xdc00) {
                long second;
                if (next(r) != '\\' || next(r) != 'u')
                    return -1;
                second = hex4(r);
                if (second < 0xdc00 || second > 0xdfff)
                    return -1;
                return 0x10000 + (value - 0xd800) * 1024 + second - 0xdc00;
            }
            return value >= 0xdc00 && value <= 0xdfff ? -1 : value;
        default:
            return -1;
        }
    }
    if (c < 128)
        return c;
    if ((c & 0xe0) == 0xc0) {
        more = 1;
        value = c & 31;
        least = 0x80;
    } else if ((c & 0xf0) == 0xe0) {
        more = 2;
        value = c & 15;
        least = 0x800;
    } else if ((c & 0xf8) == 0xf0) {
        more = 3;
        value = c & 7;
        least = 0x10000;
    } else {
        return -1;
    }
    while (more-- > 0) {
        c = next(r);
        if ((c & 0xc0) != 0x80 || c < 0)
            return -1;
        value = value * 64 + (c & 63);
    }
    return value < least || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff) ? -1 : value;
}

static int string(struct reader *r, struct name *name)
{
    if (next(r) != '"')
        return 0;
    name->count = 0;
    name->points = (uint32_t *)malloc(((size_t)(r->end - r->at) + 1) * sizeof *name->points);
    require(name->points != NULL);
    while (peek(r) != '"') {
        long c = code_point(r);
        if (c < 0) {
            free(name->points);
            return 0;
        }
        name->points[name->count++] = (uint32_t)c;
    }
    r->at++;
    return 1;
}

static int value(struct reader *r, int depth);

static int object(struct reader *r, int depth)
{
    struct name *names = NULL;
    size_t count = 0, i, k;
    int good = 0;

    spaces(r);
    if (peek(r) == '}') {
        r->at++;
        return 1;
    }
    for (;;) {
        names = (struct name *)realloc(names, (count + 1) * sizeof *names);
        require(names != NULL);
        spaces(r);
        if (!string(r, &names[count]))
            break;
        count++;
        spaces(r);
        if (next(r) != ':' || !value(r, depth))
            break;
        spaces(r);
        if (peek(r) == '}') {
            r->at++;
            good = 1;
            break;
        }
        if (next(r) != ',')
            break;
    }
    for (i = 0; i < count; i++)
        for (k = i + 1; k < count; k++)
            if (names[i].count == names[k].count &&
                memcmp(names[i].points, names[k].points, names[i].count * sizeof *names[i].points) == 0)
                good = 0;
    for (i = 0; i < count; i++)
        free(names[i].points);
    free(names);
    return good;
}

static int array(struct reader *r, int depth)
{
    spaces(r);
    if (peek(r) == ']') {
        r->at++;
        return 1;
    }
    for (;;) {
        if (!value(r, depth))
            return 0;
        spaces(r);
        if (peek(r) == ']') {
            r->at++;
            return 1;
        }
        if (next(r) != ',')
            return 0;
    }
}

static int some_digits(struct reader *r)
{
    int n = 0;

    for (; peek(r) >= '0' && peek(r) <= '9'; n++)
        r->at++;
    return n;
}

static int number(struct reader *r)
{
    if (peek(r) == '-')
        r->at++;
    if (peek(r) == '0')
        r->at++;
    else if (some_digits(r) == 0)
        return 0;
    if (peek(r) == '.') {
        r->at++;
        if (some_digits(r) == 0)
            return 0;
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        r->at++;
        if (peek(r) == '+' || peek(r) == '-')
            r->at++;
        if (some_digits(r) == 0)
            return 0;
    }
    return 1;
}

static int word(struct reader *r, const char *text)
{
    while (*text != '\0')
        if (next(r) != *text++)
            return 0;
    return 1;
}

static int value(struct reader *r, int depth)
{
    struct name text;

    spaces(r);
    switch (peek(r)) {
    case '{':
        r->at++;
        return depth > 0 && object(r, depth - 1);
    case '[':
        r->at++;
        return depth > 0 && array(r, depth - 1);
    case '"':
        if (!string(r, &text))
            return 0;
        free(text.points);
        return 1;
    case 't':
        return word(r, "true");
    case 'f':
        return word(r, "false");
    case 'n':
        return word(r, "null");
    default:
        return number(r);
    }
}

static int is_json(const uint8_t *data, size_t size, int depth)
{
    struct reader r;

    r.at = data;
    r.end = data + size;
    if (!value(&r, depth))
        return 0;
    spaces(&r);
    return r.at == r.end;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    bouncer_text secret = bouncer_string("secret"), payload;
    bouncer_crypto crypto;
    bouncer_device device;
    bouncer_error error;
    size_t room = size + BOUNCER_OVERHEAD + BOUNCER_ANSWER_OVERHEAD, length;
    char *out = (char *)malloc(room);
    int json = is_json(input, size, BOUNCER_MAX_DEPTH - 1);

    require(out != NULL);
    memset(&crypto, 0, sizeof crypto);
    crypto.hmac = sum;
    memset(&device, 0, sizeof device);
    device.id = bouncer_string("sensor_001");
    device.algorithm = BOUNCER_HMAC_SHA256;
    device.secrets = &secret;
    device.secret_count = 1;
    device.crypto = &crypto;
    payload.data = (const char *)input;
    payload.length = size;

    error = bouncer_sign(&device, 1727712000, bouncer_string("550e8400-e29b-41d4-a716-446655440000"), payload, out, room, &length);
    require(error == (json ? BOUNCER_OK : BOUNCER_PAYLOAD));
    if (error == BOUNCER_OK) {
        require(length <= size + BOUNCER_OVERHEAD);
        require(bouncer_verify_message(&device, out, length) == BOUNCER_OK);
        require(is_json((const uint8_t *)out, length, BOUNCER_MAX_DEPTH));
        out[length - 10] = (char)(out[length - 10] == '0' ? '1' : '0');
        require(bouncer_verify_message(&device, out, length) == BOUNCER_BAD_SIGNATURE);
    }
    /* As the result of an answer, which may be nested one less. */
    error = bouncer_answer(&device, bouncer_string("01923456-789a-8bcd-8def-0123456789ab"), BOUNCER_SUCCEEDED, payload, out, room, &length);
    require(error == (is_json(input, size, BOUNCER_MAX_DEPTH - 2) ? BOUNCER_OK : BOUNCER_PAYLOAD));
    require(error != BOUNCER_OK || is_json((const uint8_t *)out, length, BOUNCER_MAX_DEPTH - 1));
    free(out);
    return 0;
}
