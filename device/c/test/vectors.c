/*
 * Tests the core with one adapter: all vectors of device/vectors/device-v1.json, and what they do not have. Runs on the host
 * and on an emulated Cortex-M. Texts are copied to memory of their exact length, so that the sanitizers see what is read or
 * written outside it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter.h"
#include "bouncer_device.h"

#ifdef MEASURE_STACK
#include "stack.h"
#endif

struct text {
    const char *before;
    size_t before_length, x_times;
    const char *after;
    size_t after_length;
};

struct secret {
    const char *data;
    size_t length;
};

struct device_vector {
    struct text id;
    bouncer_algorithm algorithm;
    struct secret secrets[2];
    size_t secret_count;
    bouncer_key keys[8];
    size_t key_count;
    uint8_t private_key[32], public_key[65];
    size_t public_key_length;
};

struct sign_vector {
    struct text name, device;
    size_t credential;
    int64_t timestamp;
    struct text message_id, payload, message, error;
};

struct message_vector {
    struct text name;
    size_t device;
    struct text message, expect;
};

struct command_vector {
    struct text name;
    size_t device;
    struct text message;
    int64_t now;
    struct text expect, id, command;
    int64_t expires;
};

struct memory_step {
    struct text id;
    int64_t expires;
    struct text expect;
};

struct memory_vector {
    struct text name;
    size_t capacity;
    const struct memory_step *steps;
    size_t step_count;
};

struct answer_vector {
    struct text command_id, status, result, payload;
};

struct notice_vector {
    struct text name, message;
    int good;
    struct text message_id, reason;
    int64_t server_time;
};

#include "vectors_table.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static unsigned long checks, failures;

static void check(int good, const char *what, bouncer_text name)
{
    checks++;
    if (good)
        return;
    failures++;
    printf("FAIL %s: %.*s\n", what, (int)name.length, name.data);
}

#define CHECK(condition) check((condition), #condition, bouncer_string("line " LINE(__LINE__)))
#define LINE(n) LINE_TEXT(n)
#define LINE_TEXT(n) #n

/* Copies a text of a vector to memory of exactly its length. {NULL, 0} stays so. */
static bouncer_text copy(const struct text *text)
{
    size_t length = text->before_length + text->x_times + text->after_length;
    char *data;
    bouncer_text made = {NULL, 0};

    if (text->before == NULL)
        return made;
    data = (char *)malloc(length > 0 ? length : 1);
    if (data == NULL) {
        printf("FAIL out of memory\n");
        exit(1);
    }
    memcpy(data, text->before, text->before_length);
    memset(data + text->before_length, 'x', text->x_times);
    if (text->after != NULL)
        memcpy(data + text->before_length + text->x_times, text->after, text->after_length);
    made.data = data;
    made.length = length;
    return made;
}

static void release(bouncer_text text)
{
    free((void *)(uintptr_t)text.data);
}

static int same(bouncer_text a, bouncer_text b)
{
    if (a.data == NULL || b.data == NULL)
        return a.data == b.data;
    return a.length == b.length && memcmp(a.data, b.data, a.length) == 0;
}

/* Whether the words are those of the specification; for BOUNCER_OK the vectors have words of their own. */
static int is_word(bouncer_error error, bouncer_text expect, const char *ok)
{
    return same(bouncer_string(error == BOUNCER_OK ? ok : bouncer_error_name(error)), expect);
}

/* A device of the vectors with its credential. */
struct opened {
    bouncer_device device;
    bouncer_crypto crypto;
    bouncer_text secrets[2], id;
    bouncer_key own;
};

static void open_device(struct opened *o, size_t n)
{
    const struct device_vector *v = &device_vectors[n];
    size_t i;

    memset(o, 0, sizeof *o);
    o->id = copy(&v->id);
    for (i = 0; i < v->secret_count; i++) {
        o->secrets[i].data = v->secrets[i].data;
        o->secrets[i].length = v->secrets[i].length;
    }
    o->device.id = o->id;
    o->device.algorithm = v->algorithm;
    o->device.secrets = o->secrets;
    o->device.secret_count = v->secret_count;
    o->device.keys = v->keys;
    o->device.key_count = v->key_count;
    o->device.crypto = &o->crypto;
    o->own.algorithm = v->algorithm;
    o->own.data = v->public_key;
    o->own.length = v->public_key_length;
    check(adapter_open(&o->crypto, v->algorithm, v->public_key_length > 0 ? v->private_key : NULL, v->public_key) == 0,
          "adapter_open", o->id);
}

static void close_device(struct opened *o)
{
    adapter_close();
    release(o->id);
}

/* Half of the order of P-256, in hexadecimal. */
static const char half[] = "7fffffff800000007fffffffffffffffde737d56d38bcf4279dce5617e3192a8";

static void test_sign(void)
{
    size_t i;

    for (i = 0; i < COUNT(sign_vectors); i++) {
        const struct sign_vector *v = &sign_vectors[i];
        bouncer_text name = {v->name.before, v->name.before_length};
        bouncer_text device_id = copy(&v->device), message_id = copy(&v->message_id), payload = copy(&v->payload);
        bouncer_text expect = copy(&v->message), error_expected = copy(&v->error);
        size_t size = payload.length + BOUNCER_OVERHEAD, length = 1;
        char *out = (char *)malloc(size);
        struct opened o;
        bouncer_error error;

        open_device(&o, v->credential);
        o.device.id = device_id;
        error = bouncer_sign(&o.device, v->timestamp, message_id, payload, out, size, &length);
        if (error_expected.data != NULL) {
            check(is_word(error, error_expected, "good"), "sign: the error", name);
            check(length == 0, "sign: no length with an error", name);
        } else if (!adapter_has(o.device.algorithm)) {
            check(error == BOUNCER_UNSUPPORTED && length == 0, "sign: unsupported", name);
        } else {
            bouncer_text made = {out, length};
            check(error == BOUNCER_OK, "sign: good", name);
            if (expect.data != NULL) {
                check(same(made, expect), "sign: the message", name);
            } else {
                check(length > 130 && memcmp(out + length - 2 - 64, half, 64) <= 0, "sign: s is low", name);
            }
            /* What sign makes, verify accepts. */
            o.device.keys = &o.own;
            o.device.key_count = o.device.algorithm == BOUNCER_HMAC_SHA256 ? 0 : 1;
            check(bouncer_verify_message(&o.device, out, length) == BOUNCER_OK, "sign: verified", name);
            if (length > 0) {
                size_t again = 1, needed = length;
                char *exact = (char *)malloc(needed);
                check(bouncer_sign(&o.device, v->timestamp, message_id, payload, exact, needed - 1, &again) == BOUNCER_BUFFER &&
                          again == 0,
                      "sign: a buffer one byte short", name);
                /* From within the buffer that it is written into. */
                if (payload.length <= needed) {
                    bouncer_text inside = {exact, payload.length};
                    memcpy(exact, payload.data, payload.length);
                    check(bouncer_sign(&o.device, v->timestamp, message_id, inside, exact, needed, &again) == BOUNCER_OK &&
                              bouncer_verify_message(&o.device, exact, again) == BOUNCER_OK,
                          "sign: an exact buffer that has the payload", name);
                }
                free(exact);
            }
        }
        close_device(&o);
        free(out);
        release(device_id);
        release(message_id);
        release(payload);
        release(expect);
        release(error_expected);
    }
}

static void test_messages(void)
{
    size_t i;

    for (i = 0; i < COUNT(message_vectors); i++) {
        const struct message_vector *v = &message_vectors[i];
        bouncer_text name = {v->name.before, v->name.before_length};
        bouncer_text message = copy(&v->message), expect = copy(&v->expect);
        struct opened o;
        bouncer_error error;

        open_device(&o, v->device);
        o.device.keys = &o.own;
        o.device.key_count = o.device.algorithm == BOUNCER_HMAC_SHA256 ? 0 : 1;
        error = bouncer_verify_message(&o.device, message.data, message.length);
        if (adapter_has(o.device.algorithm))
            check(is_word(error, expect, "good"), "message", name);
        else
            check(is_word(error, expect, "-") || (error == BOUNCER_UNSUPPORTED && !same(expect, bouncer_string("malformed"))),
                  "message: unsupported", name);
        close_device(&o);
        release(message);
        release(expect);
    }
}

static void test_commands(void)
{
    size_t i;

    for (i = 0; i < COUNT(command_vectors); i++) {
        const struct command_vector *v = &command_vectors[i];
        bouncer_text name = {v->name.before, v->name.before_length};
        bouncer_text message = copy(&v->message), expect = copy(&v->expect), id = copy(&v->id), text = copy(&v->command);
        struct opened o;
        bouncer_command command, none;
        bouncer_error error;

        memset(&command, 1, sizeof command);
        memset(&none, 0, sizeof none);
        open_device(&o, v->device);
        error = bouncer_verify_command(&o.device, message.data, message.length, v->now, &command);
        if (adapter_has(o.device.algorithm))
            check(is_word(error, expect, "good"), "command", name);
        else
            check(error == BOUNCER_UNSUPPORTED ? !same(expect, bouncer_string("foreign")) : is_word(error, expect, "-"),
                  "command: unsupported", name);
        if (error == BOUNCER_OK) {
            check(same(command.id, id), "command: the id", name);
            check(same(command.command, text), "command: the command", name);
            check(command.expires == v->expires, "command: expires", name);
        } else {
            check(memcmp(&command, &none, sizeof none) == 0, "command: nothing with an error", name);
        }
        close_device(&o);
        release(message);
        release(expect);
        release(id);
        release(text);
    }
}

static void test_memory(void)
{
    size_t i, k;

    for (i = 0; i < COUNT(memory_vectors); i++) {
        const struct memory_vector *v = &memory_vectors[i];
        bouncer_text name = {v->name.before, v->name.before_length};
        bouncer_memory memory;

        memset(&memory, 0, sizeof memory);
        memory.capacity = v->capacity;
        memory.entries = (bouncer_memory_entry *)malloc(v->capacity * sizeof *memory.entries);
        for (k = 0; k < v->step_count; k++) {
            /* Over a restart: the entries that count, count and floor are all that there is. */
            bouncer_memory_entry *stored = (bouncer_memory_entry *)malloc(v->capacity * sizeof *stored);
            bouncer_text id = copy(&v->steps[k].id), expect = copy(&v->steps[k].expect);
            memcpy(stored, memory.entries, memory.count * sizeof *stored);
            free(memory.entries);
            memory.entries = stored;
            check(is_word(bouncer_memory_take(&memory, id, v->steps[k].expires), expect, "new"), "memory", name);
            release(id);
            release(expect);
        }
        free(memory.entries);
    }
}

static bouncer_status status_of(bouncer_text word)
{
    return same(word, bouncer_string("succeeded")) ? BOUNCER_SUCCEEDED
           : same(word, bouncer_string("failed"))  ? BOUNCER_FAILED
                                                   : BOUNCER_REJECTED;
}

static void test_answers(void)
{
    size_t i;

    for (i = 0; i < COUNT(answer_vectors); i++) {
        const struct answer_vector *v = &answer_vectors[i];
        bouncer_text id = copy(&v->command_id), status = copy(&v->status), result = copy(&v->result), expect = copy(&v->payload);
        bouncer_device device;
        size_t length = 1;
        char *out = (char *)malloc(expect.length);
        bouncer_text made;

        memset(&device, 0, sizeof device);
        check(bouncer_answer(&device, id, status_of(status), result, out, expect.length - 1, &length) == BOUNCER_BUFFER &&
                  length == 0,
              "answer: a buffer one byte short", expect);
        check(bouncer_answer(&device, id, status_of(status), result, out, expect.length, &length) == BOUNCER_OK, "answer", expect);
        made.data = out;
        made.length = length;
        check(same(made, expect), "answer: the payload", expect);
        check(length <= result.length + BOUNCER_ANSWER_OVERHEAD, "answer: the overhead", expect);
        free(out);
        release(id);
        release(status);
        release(result);
        release(expect);
    }
}

static void test_notices(void)
{
    size_t i;

    for (i = 0; i < COUNT(notice_vectors); i++) {
        const struct notice_vector *v = &notice_vectors[i];
        bouncer_text name = {v->name.before, v->name.before_length};
        bouncer_text message = copy(&v->message), id = copy(&v->message_id), reason = copy(&v->reason);
        bouncer_notice notice;

        check((bouncer_read_notice(message.data, message.length, &notice) == BOUNCER_OK) == v->good, "notice", name);
        check(same(notice.message_id, id), "notice: the message id", name);
        check(same(notice.reason, reason), "notice: the reason", name);
        check(notice.server_time == v->server_time, "notice: the server's time", name);
        release(message);
        release(id);
        release(reason);
    }
}

/* What the vectors do not have. */

static const char an_id[] = "550e8400-e29b-41d4-a716-446655440000";
static const char a_command[] = "01923456-789a-8bcd-8def-0123456789ab";

static bouncer_error sign_with(const bouncer_device *device)
{
    char out[512];
    size_t length;

    return bouncer_sign(device, 0, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, &length);
}

static void test_credentials(void)
{
    static const struct {
        const char *data;
        size_t length;
        bouncer_error expect;
    } secrets[] = {
        {"", 0, BOUNCER_CREDENTIAL},
        {"\0\0\0", 3, BOUNCER_CREDENTIAL},
        {" \t\r\n\v\f", 6, BOUNCER_CREDENTIAL},
        {" \0 ", 3, BOUNCER_CREDENTIAL},
        {"\302\205\302\240", 4, BOUNCER_CREDENTIAL},
        {"\341\232\200\342\200\200\342\200\212\342\200\250\342\200\251\342\200\257\342\201\237\343\200\200", 24, BOUNCER_CREDENTIAL},
        {"\302\240x", 3, BOUNCER_OK},
        {"\342\200\213", 3, BOUNCER_OK}, /* U+200B is no white space */
        {"\342\200", 2, BOUNCER_OK},     /* bytes, not text */
        {"\302", 1, BOUNCER_OK},
        {" x", 2, BOUNCER_OK},
        {"\0x", 2, BOUNCER_OK},
    };
    struct opened o;
    bouncer_command command;
    bouncer_text many[9];
    size_t i;

    open_device(&o, 0);
    for (i = 0; i < COUNT(secrets); i++) {
        bouncer_text secret = {secrets[i].data, secrets[i].length};
        bouncer_text name = {"a secret", 8};
        o.device.secrets = &secret;
        o.device.secret_count = 1;
        check(sign_with(&o.device) == secrets[i].expect, "credential: sign", name);
        many[0] = bouncer_string("good");
        many[1] = secret;
        o.device.secrets = many;
        o.device.secret_count = 2;
        check(sign_with(&o.device) == secrets[i].expect, "credential: the second secret", name);
        check(bouncer_verify_command(&o.device, "{}", 2, 0, &command) ==
                  (secrets[i].expect == BOUNCER_OK ? BOUNCER_MALFORMED : BOUNCER_CREDENTIAL),
              "credential: verify", name);
    }
    for (i = 0; i < 9; i++)
        many[i] = bouncer_string("secret");
    o.device.secret_count = 8;
    CHECK(sign_with(&o.device) == BOUNCER_OK);
    o.device.secret_count = 9;
    CHECK(sign_with(&o.device) == BOUNCER_CREDENTIAL);
    o.device.secret_count = 0;
    CHECK(sign_with(&o.device) == BOUNCER_CREDENTIAL);
    CHECK(bouncer_verify_message(&o.device, "{}", 2) == BOUNCER_CREDENTIAL);
    o.device.secret_count = 1;
    o.device.algorithm = (bouncer_algorithm)0;
    CHECK(sign_with(&o.device) == BOUNCER_CREDENTIAL);
    o.device.algorithm = BOUNCER_HMAC_SHA256;
    o.crypto.hmac = NULL;
    CHECK(sign_with(&o.device) == BOUNCER_CREDENTIAL);
    o.device.crypto = NULL;
    CHECK(sign_with(&o.device) == BOUNCER_CREDENTIAL);
    CHECK(bouncer_verify_command(&o.device, "{}", 2, 0, &command) == BOUNCER_CREDENTIAL);
    close_device(&o);

    open_device(&o, 1);
    o.device.key_count = BOUNCER_MAX_KEYS + 1;
    CHECK(bouncer_verify_command(&o.device, "{}", 2, 0, &command) == BOUNCER_CREDENTIAL);
    o.device.key_count = 1;
    o.device.keys = NULL;
    CHECK(bouncer_verify_command(&o.device, "{}", 2, 0, &command) == BOUNCER_CREDENTIAL);
    close_device(&o);
}

/* A credential without a key of the gateway: no command is good. The key of the other algorithm is none. */
static void test_no_keys(void)
{
    size_t i;

    for (i = 0; i < COUNT(command_vectors); i++) {
        const struct command_vector *v = &command_vectors[i];
        bouncer_text name = {v->name.before, v->name.before_length};
        bouncer_text message, expect = copy(&v->expect);
        bouncer_key others[8];
        bouncer_command command;
        struct opened o;
        size_t k, n = 0;

        if (device_vectors[v->device].algorithm != BOUNCER_HMAC_SHA256 && same(expect, bouncer_string("good"))) {
            message = copy(&v->message);
            open_device(&o, v->device);
            for (k = 0; k < o.device.key_count; k++)
                if (o.device.keys[k].algorithm != o.device.algorithm)
                    others[n++] = o.device.keys[k];
            o.device.keys = others;
            o.device.key_count = n;
            check(bouncer_verify_command(&o.device, message.data, message.length, v->now, &command) == BOUNCER_FORGED,
                  "no key: the keys of another algorithm", name);
            o.device.keys = NULL;
            o.device.key_count = 0;
            check(bouncer_verify_command(&o.device, message.data, message.length, v->now, &command) == BOUNCER_FORGED,
                  "no key", name);
            close_device(&o);
            release(message);
        }
        release(expect);
    }
}

static int failing_hmac(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    (void)secret;
    (void)bytes;
    memset(mac, 0, 32);
    return *(int *)context;
}

static int fixed_sign(void *context, bouncer_algorithm algorithm, const bouncer_signed *bytes, uint8_t signature[64])
{
    (void)algorithm;
    CHECK(bytes->head + bytes->head_length == bytes->tail);
    memcpy(signature, context, 64);
    return 0;
}

static int accepting_verify(void *context, const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    (void)key;
    (void)bytes;
    (void)signature;
    ++*(int *)context;
    return 0;
}

static void test_functions(void)
{
    static const char zeros[] = "{\"device_id\":\"a\",\"timestamp\":1,\"message_id\":\"01923456-789a-8bcd-8def-0123456789ab\","
                                "\"payload\":{\"command\":1,\"expires\":9},\"signature\":\""
                                "0000000000000000000000000000000000000000000000000000000000000000\"}";
    /* n - 1, whose negative is 1; and half, which is low. */
    static const char high[] = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550";
    static const char one[] = "0000000000000000000000000000000000000000000000000000000000000001";
    static const char above[] = "7fffffff800000007fffffffffffffffde737d56d38bcf4279dce5617e3192a9";
    bouncer_text secret = bouncer_string("secret");
    bouncer_crypto crypto;
    bouncer_device device;
    bouncer_command command;
    bouncer_key key;
    uint8_t signature[64];
    char out[512];
    size_t length, i;
    int result = 0, calls = 0;

    memset(&crypto, 0, sizeof crypto);
    memset(&device, 0, sizeof device);
    memset(&key, 0, sizeof key);
    crypto.hmac = failing_hmac;
    crypto.hmac_context = &result;
    device.id = bouncer_string("a");
    device.algorithm = BOUNCER_HMAC_SHA256;
    device.secrets = &secret;
    device.secret_count = 1;
    device.crypto = &crypto;
    CHECK(bouncer_verify_command(&device, zeros, strlen(zeros), 0, &command) == BOUNCER_OK && command.timestamp == 1);
    result = -1;
    /* A function that fails verifies nothing, whatever it has written. */
    CHECK(bouncer_verify_command(&device, zeros, strlen(zeros), 0, &command) == BOUNCER_FORGED);
    CHECK(bouncer_verify_message(&device, zeros, strlen(zeros)) == BOUNCER_BAD_SIGNATURE);
    CHECK(sign_with(&device) == BOUNCER_CRYPTO);
    result = BOUNCER_UNSUPPORTED;
    CHECK(sign_with(&device) == BOUNCER_UNSUPPORTED);

    /* For a device whose id begins with this one's, and for one that this one's begins with. */
    result = 0;
    device.id = bouncer_string("ab");
    CHECK(bouncer_verify_command(&device, zeros, strlen(zeros), 0, &command) == BOUNCER_FOREIGN);
    device.id = bouncer_string("b");
    CHECK(bouncer_verify_command(&device, zeros, strlen(zeros), 0, &command) == BOUNCER_FOREIGN);
    memcpy(out, zeros, sizeof zeros);
    out[14] = 'b'; /* where the id is */
    CHECK(bouncer_verify_command(&device, out, strlen(zeros), 0, &command) == BOUNCER_OK);
    {
        char longer[512];
        snprintf(longer, sizeof longer, "{\"device_id\":\"bc%s", zeros + 15);
        CHECK(bouncer_verify_command(&device, longer, strlen(longer), 0, &command) == BOUNCER_FOREIGN);
    }
    device.id = bouncer_string("a");

    /* The core makes a high s low, and refuses one. */
    device.algorithm = BOUNCER_ECDSA_P256;
    crypto.sign = fixed_sign;
    crypto.sign_context = signature;
    crypto.verify = accepting_verify;
    crypto.verify_context = &calls;
    device.keys = &key;
    device.key_count = 1;
    /* A key of another algorithm is not even tried. */
    key.algorithm = BOUNCER_ED25519;
    memset(signature, 7, sizeof signature);
    CHECK(bouncer_sign(&device, 5, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, &length) == BOUNCER_OK);
    CHECK(bouncer_verify_message(&device, out, length) == BOUNCER_BAD_SIGNATURE && calls == 0);
    key.algorithm = BOUNCER_ECDSA_P256;
    for (i = 0; i < 3; i++) {
        const char *s = i == 0 ? high : i == 1 ? half : above, *expect = i == 0 ? one : half;
        size_t k;
        memset(signature, 7, sizeof signature);
        for (k = 0; k < 32; k++) {
            unsigned byte = 0;
            CHECK(sscanf(s + 2 * k, "%2x", &byte) == 1);
            signature[32 + k] = (uint8_t)byte;
        }
        CHECK(bouncer_sign(&device, 5, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, &length) == BOUNCER_OK);
        CHECK(length > 66 && memcmp(out + length - 2 - 64, expect, 64) == 0);
        CHECK(bouncer_verify_message(&device, out, length) == BOUNCER_OK && calls == (int)i + 1);
        memcpy(out + length - 2 - 64, i == 2 ? above : high, 64);
        CHECK(bouncer_verify_message(&device, out, length) == BOUNCER_BAD_SIGNATURE && calls == (int)i + 1);
    }
}

static void test_arguments(void)
{
    static const char *const names[] = {"ok",     "device_id", "timestamp", "message_id",    "payload",    "too_large", "malformed",   "foreign",
                                        "forged", "expired",   "repeated",  "bad_signature", "credential", "crypto",    "unsupported", "buffer",
                                        "argument"};
    static const uint8_t random[16] = {0x55, 0x0e, 0x84, 0, 0xe2, 0x9b, 0xf1, 0xd4, 0x27, 0x16, 0x44, 0x66, 0x55, 0x44, 0, 0xff};
    struct opened o;
    char out[600], id[BOUNCER_UUID_LENGTH + 1];
    bouncer_text none = {NULL, 0};
    bouncer_memory memory;
    bouncer_memory_entry entries[2];
    bouncer_command command;
    bouncer_notice notice;
    size_t length = 1, i;

    for (i = 0; i < COUNT(names); i++)
        CHECK(strcmp(bouncer_error_name((bouncer_error)i), names[i]) == 0);
    CHECK(strcmp(bouncer_error_name((bouncer_error)COUNT(names)), "unknown") == 0);
    CHECK(strcmp(bouncer_error_name((bouncer_error)1000), "unknown") == 0);
    bouncer_uuid(random, id);
    CHECK(strcmp(id, "550e8400-e29b-41d4-a716-4466554400ff") == 0);
    CHECK(bouncer_same_id(bouncer_string("ABCDEF00-e29b-41d4-a716-446655440000"), bouncer_string("abcdef00-E29B-41d4-a716-446655440000")));
    CHECK(!bouncer_same_id(bouncer_string(an_id), bouncer_string(a_command)));
    CHECK(!bouncer_same_id(none, none));
    CHECK(!bouncer_same_id(bouncer_string("x"), bouncer_string("x")));

    open_device(&o, 0);
    CHECK(bouncer_sign(NULL, 0, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, &length) == BOUNCER_ARGUMENT);
    CHECK(bouncer_sign(&o.device, 0, bouncer_string(an_id), bouncer_string("1"), NULL, 0, &length) == BOUNCER_ARGUMENT);
    CHECK(bouncer_sign(&o.device, 0, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, NULL) == BOUNCER_ARGUMENT);
    CHECK(bouncer_sign(&o.device, 0, none, bouncer_string("1"), out, sizeof out, &length) == BOUNCER_MESSAGE_ID);
    CHECK(bouncer_sign(&o.device, 0, bouncer_string(an_id), none, out, sizeof out, &length) == BOUNCER_PAYLOAD);
    CHECK(bouncer_sign(&o.device, INT64_MIN, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, &length) == BOUNCER_TIMESTAMP);
    CHECK(bouncer_verify_command(NULL, "{}", 2, 0, &command) == BOUNCER_ARGUMENT);
    CHECK(bouncer_verify_command(&o.device, NULL, 2, 0, &command) == BOUNCER_ARGUMENT);
    CHECK(bouncer_verify_command(&o.device, NULL, 0, 0, &command) == BOUNCER_MALFORMED);
    CHECK(bouncer_verify_command(&o.device, "{}", 2, 0, NULL) == BOUNCER_ARGUMENT);
    CHECK(bouncer_verify_message(&o.device, NULL, 0) == BOUNCER_MALFORMED);
    for (i = BOUNCER_MAX_NOTICE; i <= BOUNCER_MAX_NOTICE + 1; i++) {
        static const char text[] = "{\"message_id\":null,\"reason\":\"stale\",\"server_time\":1}";
        static char long_notice[BOUNCER_MAX_NOTICE + 1];
        memset(long_notice, ' ', sizeof long_notice);
        memcpy(long_notice, text, sizeof text - 1);
        CHECK(bouncer_read_notice(long_notice, i, &notice) == (i == BOUNCER_MAX_NOTICE ? BOUNCER_OK : BOUNCER_MALFORMED));
    }

    /* The limit is a setting. */
    CHECK(bouncer_sign(&o.device, 0, bouncer_string(an_id), bouncer_string("1"), out, sizeof out, &length) == BOUNCER_OK);
    o.device.max_message = length - 1;
    CHECK(bouncer_verify_message(&o.device, out, length) == BOUNCER_MALFORMED);
    CHECK(sign_with(&o.device) == BOUNCER_TOO_LARGE);
    o.device.max_message = length;
    CHECK(sign_with(&o.device) == BOUNCER_OK);
    CHECK(bouncer_verify_message(&o.device, out, length) == BOUNCER_OK);

    /* The greatest overhead: the longest device id and time. */
    for (i = 0; i < BOUNCER_MAX_DEVICE_ID; i++)
        out[i] = 'a';
    o.device.max_message = 0;
    o.device.id.data = out;
    o.device.id.length = BOUNCER_MAX_DEVICE_ID;
    {
        char large[BOUNCER_OVERHEAD + 1];
        CHECK(bouncer_sign(&o.device, BOUNCER_MAX_TIME, bouncer_string(an_id), bouncer_string("1"), large, sizeof large, &length) == BOUNCER_OK);
        CHECK(length + 64 <= sizeof large); /* a signature of a key has 64 digits more */
    }
    close_device(&o);

    open_device(&o, 0);
    CHECK(bouncer_answer(&o.device, bouncer_string("x"), BOUNCER_FAILED, none, out, sizeof out, &length) == BOUNCER_MESSAGE_ID);
    CHECK(bouncer_answer(&o.device, bouncer_string(a_command), (bouncer_status)0, none, out, sizeof out, &length) == BOUNCER_ARGUMENT);
    CHECK(bouncer_answer(&o.device, bouncer_string(a_command), (bouncer_status)4, none, out, sizeof out, &length) == BOUNCER_ARGUMENT);
    CHECK(bouncer_answer(&o.device, bouncer_string(a_command), BOUNCER_FAILED, bouncer_string("{"), out, sizeof out, &length) == BOUNCER_PAYLOAD);
    CHECK(bouncer_answer(&o.device, bouncer_string(a_command), BOUNCER_FAILED, bouncer_string(""), out, sizeof out, &length) == BOUNCER_PAYLOAD);
    CHECK(bouncer_answer(&o.device, bouncer_string(a_command), BOUNCER_FAILED, bouncer_string(" 1\n"), out, sizeof out, &length) == BOUNCER_OK);
    CHECK(length > 12 && memcmp(out + length - 11, "\"result\":1}", 11) == 0);
    o.device.max_message = length - 1;
    CHECK(bouncer_answer(&o.device, bouncer_string(a_command), BOUNCER_FAILED, bouncer_string("1"), out, sizeof out, &length) == BOUNCER_TOO_LARGE);
    close_device(&o);

    memset(&memory, 0, sizeof memory);
    CHECK(bouncer_memory_take(NULL, bouncer_string(a_command), 1) == BOUNCER_ARGUMENT);
    CHECK(bouncer_memory_take(&memory, bouncer_string(a_command), 1) == BOUNCER_ARGUMENT);
    memory.entries = entries;
    CHECK(bouncer_memory_take(&memory, bouncer_string(a_command), 1) == BOUNCER_ARGUMENT);
    memory.capacity = 2;
    memory.count = 3;
    CHECK(bouncer_memory_take(&memory, bouncer_string(a_command), 1) == BOUNCER_ARGUMENT);
    memory.count = 0;
    memory.floor = -1;
    CHECK(bouncer_memory_take(&memory, bouncer_string(a_command), 1) == BOUNCER_ARGUMENT);
    memory.floor = 0;
    CHECK(bouncer_memory_take(&memory, bouncer_string("x"), 1) == BOUNCER_ARGUMENT);
    CHECK(bouncer_memory_take(&memory, bouncer_string(a_command), 0) == BOUNCER_EXPIRED);
    CHECK(bouncer_memory_take(&memory, bouncer_string(a_command), 1) == BOUNCER_OK && memory.count == 1);

    CHECK(bouncer_read_notice(NULL, 0, &notice) == BOUNCER_MALFORMED);
    CHECK(bouncer_read_notice("{}", 2, NULL) == BOUNCER_ARGUMENT);
    {
        static const char escaped[] = "{\"me\\u0073sage_id\":null,\"reason\":\"x\",\"server_time\":1,\"y\":1}";
        static const char twice[] = "{\"message_id\":null,\"reason\":\"x\",\"server_time\":1,\"\\u0072eason\":\"y\"}";
        CHECK(bouncer_read_notice(escaped, strlen(escaped), &notice) == BOUNCER_OK && notice.server_time == 1);
        CHECK(bouncer_read_notice(twice, strlen(twice), &notice) == BOUNCER_MALFORMED);
    }
}

static void test_duplicates(void)
{
    static const struct {
        const char *payload;
        bouncer_error expect;
    } cases[] = {
        {"{\"a\":\"a\",\"b\":\"a\"}", BOUNCER_OK},
        {"{\"a\":\"a\" , \"a\":\"a\"}", BOUNCER_PAYLOAD},
        {"{\"a\":{\"b\":1},\"b\":1}", BOUNCER_OK},
        {"{\"a\":[{\"b\":1},{\"b\":1}]}", BOUNCER_OK},
        {"{\"a\":[\"}\",{\"b\":\"{\"}],\"a\" :1}", BOUNCER_PAYLOAD},
        {"[[],[{\"x\":{},\"y\":{\"z\":[],\"z\":[]}}]]", BOUNCER_PAYLOAD},
        {"{\"\\\"\":1,\"\\u0022\":2}", BOUNCER_PAYLOAD},
        {"{\"\\\\\":1,\"\\u005c\":2}", BOUNCER_PAYLOAD},
        {"{\"/\":1,\"\\/\":2}", BOUNCER_PAYLOAD},
        {"{\"\\n\":1,\"\\u000A\":2}", BOUNCER_PAYLOAD},
        {"{\"\\b\":1,\"\\f\":2,\"\\n\":3,\"\\r\":4,\"\\t\":5,\"b\":6,\"f\":7,\"n\":8,\"r\":9,\"t\":10}", BOUNCER_OK},
        {"{\"\":1,\"\":2}", BOUNCER_PAYLOAD},
        {"{\"\\u0000\":1,\"\":2}", BOUNCER_OK},
        {"{\"\\u0000\":1,\"\\u0000\":2}", BOUNCER_PAYLOAD},
        {"{\"\303\251\":1,\"\\u00e9\":2}", BOUNCER_PAYLOAD},
        {"{\"\342\202\254\":1,\"\\u20AC\":2}", BOUNCER_PAYLOAD},
        {"{\"\360\237\230\200\":1,\"\\uD83D\\uDE00\":2}", BOUNCER_PAYLOAD},
        {"{\"\360\237\230\200\":1,\"\\uD83D\\uDE01\":2}", BOUNCER_OK},
        {"{\"a\":1,\"ab\":2,\"abc\":3,\"bc\":4}", BOUNCER_OK},
    };
    struct opened o;
    size_t i;

    open_device(&o, 0);
    for (i = 0; i < COUNT(cases); i++) {
        char out[512];
        size_t length;
        bouncer_text payload = bouncer_string(cases[i].payload);
        check(bouncer_sign(&o.device, 0, bouncer_string(an_id), payload, out, sizeof out, &length) == cases[i].expect,
              "names", payload);
    }
    close_device(&o);
}

int main(void)
{
    printf("bouncer_device %s with %s\n", BOUNCER_VERSION, adapter_name);
#ifdef MEASURE_STACK
    measure_stack();
#endif
    test_memory();
    test_answers();
    test_notices();
    test_functions();
    test_credentials();
    test_arguments();
    test_duplicates();
    test_sign();
    test_messages();
    test_commands();
    test_no_keys();
    printf("%lu vectors, %lu checks, %lu failures\n",
           (unsigned long)(COUNT(sign_vectors) + COUNT(message_vectors) + COUNT(command_vectors) + COUNT(memory_vectors) +
                           COUNT(answer_vectors) + COUNT(notice_vectors)),
           checks, failures);
    if (failures == 0)
        printf("passed\n");
    return failures == 0 ? 0 : 1;
}
