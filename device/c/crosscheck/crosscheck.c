/* The cross-check of the library in C: test/devices/doc.go says what it reads and prints. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <openssl/pem.h>

#include "bouncer_openssl.h"

#define MAX_SECRETS 8
#define MAX_KNOWN 16

struct credential {
    bouncer_device device;
    bouncer_crypto crypto;
    bouncer_text secrets[MAX_SECRETS];
    EVP_PKEY *private_key;
    bouncer_key own, keys[BOUNCER_MAX_KEYS];
    uint8_t own_point[65], points[BOUNCER_MAX_KEYS][65];
};

static void fail(const char *why)
{
    fprintf(stderr, "crosscheck: %s\n", why);
    exit(1);
}

static bouncer_text text_of(json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    bouncer_text text = {NULL, 0};

    if (!json_is_string(value))
        fail("a text is missing");
    text.data = json_string_value(value);
    text.length = json_string_length(value);
    return text;
}

static EVP_PKEY *read_key(json_t *pem, int is_private)
{
    BIO *bio = BIO_new_mem_buf(json_string_value(pem), -1);
    EVP_PKEY *key;

    if (bio == NULL)
        fail("a key is no text");
    key = is_private ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : PEM_read_bio_PUBKEY(bio, NULL, NULL, NULL);
    BIO_free(bio);
    if (key == NULL)
        fail("a key cannot be read");
    return key;
}

static void read_public(json_t *pem, bouncer_key *key, uint8_t point[65])
{
    EVP_PKEY *parsed = read_key(pem, 0);

    if (bouncer_openssl_key(parsed, key, point) != 0)
        fail("a key is of another algorithm");
    EVP_PKEY_free(parsed);
}

static void read_credential(json_t *device, struct credential *c)
{
    json_t *secrets = json_object_get(device, "secrets"), *keys = json_object_get(device, "command_keys"), *value;
    const char *algorithm = json_string_value(json_object_get(device, "algorithm"));
    size_t i;

    memset(c, 0, sizeof *c);
    if (algorithm == NULL)
        fail("no algorithm");
    c->device.id = text_of(device, "device_id");
    c->device.algorithm = strcmp(algorithm, "Ed25519") == 0       ? BOUNCER_ED25519
                          : strcmp(algorithm, "ECDSA P-256") == 0 ? BOUNCER_ECDSA_P256
                                                                  : BOUNCER_HMAC_SHA256;
    json_array_foreach(secrets, i, value)
    {
        if (i == MAX_SECRETS || !json_is_string(value))
            fail("secrets are not 1 to 8 texts");
        c->secrets[i].data = json_string_value(value);
        c->secrets[i].length = json_string_length(value);
        c->device.secret_count = i + 1;
    }
    c->device.secrets = c->secrets;
    json_array_foreach(keys, i, value)
    {
        if (i == BOUNCER_MAX_KEYS)
            fail("more than 8 keys");
        read_public(value, &c->keys[i], c->points[i]);
        c->device.key_count = i + 1;
    }
    c->device.keys = c->keys;
    if (json_object_get(device, "private_key") != NULL)
        c->private_key = read_key(json_object_get(device, "private_key"), 1);
    if (json_object_get(device, "public_key") != NULL)
        read_public(json_object_get(device, "public_key"), &c->own, c->own_point);
    bouncer_openssl(&c->crypto, c->private_key);
    c->device.crypto = &c->crypto;
}

/* The credential of a device, which is read once: reading keys takes most of the time. Of more devices than there is room for, the
   last takes the place of the one before it. */
static struct credential credential_of(json_t *device)
{
    static struct {
        json_t *device; /* whose texts the credential points to */
        struct credential credential;
    } known[MAX_KNOWN];
    static size_t count;
    size_t i;

    for (i = 0; i < count; i++)
        if (json_equal(known[i].device, device))
            return known[i].credential;
    if (count < MAX_KNOWN) {
        i = count++;
    } else {
        i = MAX_KNOWN - 1;
        EVP_PKEY_free(known[i].credential.private_key);
        json_decref(known[i].device);
    }
    known[i].device = json_incref(device);
    read_credential(device, &known[i].credential);
    return known[i].credential;
}

static json_t *sign(struct credential *c, json_t *order)
{
    bouncer_text payload = text_of(order, "payload");
    size_t size = payload.length + BOUNCER_OVERHEAD, length;
    json_t *timestamp = json_object_get(order, "timestamp"), *answer;
    char *out = malloc(size);
    bouncer_error error;

    if (out == NULL || !json_is_integer(timestamp))
        fail("no timestamp");
    error = bouncer_sign(&c->device, json_integer_value(timestamp), text_of(order, "message_id"), payload, out, size, &length);
    answer = error == BOUNCER_OK ? json_pack("{s:s%}", "message", out, length)
                                 : json_pack("{s:s}", "error", bouncer_error_name(error));
    free(out);
    return answer;
}

static json_t *verify(struct credential *c, json_t *order)
{
    bouncer_text message = text_of(order, "message");
    bouncer_error error;

    c->device.keys = &c->own;
    c->device.key_count = c->private_key == NULL ? 0 : 1;
    error = bouncer_verify_message(&c->device, message.data, message.length);
    return json_pack("{s:s}", "result", error == BOUNCER_OK ? "good" : bouncer_error_name(error));
}

static json_t *command(struct credential *c, json_t *order)
{
    bouncer_text message = text_of(order, "message");
    json_t *now = json_object_get(order, "now");
    bouncer_command found;
    bouncer_error error = bouncer_verify_command(&c->device, message.data, message.length,
                                                 json_is_integer(now) ? json_integer_value(now) : BOUNCER_NO_CLOCK, &found);

    if (error != BOUNCER_OK)
        return json_pack("{s:s}", "result", bouncer_error_name(error));
    return json_pack("{s:s,s:s%,s:s%,s:I}", "result", "good", "id", found.id.data, found.id.length, "command", found.command.data,
                     found.command.length, "expires", (json_int_t)found.expires);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        json_t *order = json_loads(line, JSON_ALLOW_NUL, NULL), *answer;
        bouncer_text what;
        struct credential c;
        char *text;

        if (order == NULL)
            fail("a line is no JSON");
        what = text_of(order, "do");
        c = credential_of(json_object_get(order, "device"));
        answer = strcmp(what.data, "sign") == 0      ? sign(&c, order)
                 : strcmp(what.data, "verify") == 0  ? verify(&c, order)
                 : strcmp(what.data, "command") == 0 ? command(&c, order)
                                                     : NULL;
        text = answer == NULL ? NULL : json_dumps(answer, JSON_COMPACT);
        if (text == NULL)
            fail("there is no answer");
        puts(text);
        fflush(stdout);
        free(text);
        json_decref(answer);
        json_decref(order);
    }
    free(line);
    return 0;
}
