/* Reads the bundle that "bouncerctl device add" made. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include "internal.h"

struct reading {
    struct bundle *bundle;
    const char *directory;
    int at; /* the directory, opened */
    char *message;
    size_t size;
};

static int fail(const struct reading *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int fail(const struct reading *r, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    if (r->message != NULL && r->size > 0)
        vsnprintf(r->message, r->size, format, arguments);
    va_end(arguments);
    return BOUNCER_BUNDLE;
}

/* The text of a member, without a NUL in it, or NULL. */
static const char *text_of(json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);

    if (!json_is_string(value) || json_string_length(value) == 0 || strlen(json_string_value(value)) != json_string_length(value))
        return NULL;
    return json_string_value(value);
}

static int take_path(struct reading *r, json_t *object, const char *name, char **path)
{
    const char *text = text_of(object, name);

    if (text == NULL)
        return fail(r, "device.json: %s is missing or not a text", name);
    *path = path_of(r->directory, text);
    if (*path == NULL)
        return BOUNCER_MEMORY;
    if (access(*path, R_OK) != 0)
        return fail(r, "device.json: %s: %s: %s", name, *path, strerror(errno));
    return 0;
}

static int take_topic(struct reading *r, json_t *topics, const char *name, int required, char **topic)
{
    const char *text = text_of(topics, name);

    if (json_object_get(topics, name) == NULL && !required)
        return 0;
    if (text == NULL || strlen(text) > 1024 || strpbrk(text, "#+") != NULL)
        return fail(r, "device.json: topics: %s is missing or no topic", name);
    *topic = strdup(text);
    return *topic == NULL ? BOUNCER_MEMORY : 0;
}

static int take_topics(struct reading *r, json_t *object)
{
    json_t *topics = json_object_get(object, "topics");
    struct bundle *b = r->bundle;
    int error;

    if (!json_is_object(topics))
        return fail(r, "device.json: topics is missing or not an object");
    if ((error = take_topic(r, topics, "data", 1, &b->data)) != 0 ||
        (error = take_topic(r, topics, "response", 0, &b->response)) != 0 ||
        (error = take_topic(r, topics, "rejected", 0, &b->rejected)) != 0 ||
        (error = take_topic(r, topics, "command", 0, &b->command)) != 0)
        return error;
    if (b->command != NULL) {
        size_t length = strlen(b->command) + sizeof "/result";
        b->result = malloc(length);
        if (b->result == NULL)
            return BOUNCER_MEMORY;
        snprintf(b->result, length, "%s/result", b->command);
    }
    return 0;
}

static int take_secret(struct reading *r, json_t *object)
{
    const char *name = text_of(object, "secret");
    size_t length = 0;
    char *data;

    if (name == NULL)
        return fail(r, "device.json: secret is missing or not a text");
    data = file_read(r->at, name, MAX_FILE, &length);
    if (data == NULL)
        return fail(r, "device.json: secret: %s: %s", name, strerror(errno));
    if (length > 0 && data[length - 1] == '\n')
        length--;
    r->bundle->secret.data = data;
    r->bundle->secret.length = length;
    r->bundle->device.secrets = &r->bundle->secret;
    r->bundle->device.secret_count = 1;
    return 0;
}

/* An encrypted key is refused: there is no one to type the password. */
static int no_password(char *buffer, int size, int writing, void *context)
{
    (void)buffer;
    (void)size;
    (void)writing;
    (void)context;
    return -1;
}

/* Opens a PEM file in memory. The caller frees both. */
static BIO *open_pem(struct reading *r, json_t *object, const char *name, char **data, size_t *length, int *error)
{
    const char *file = text_of(object, name);
    BIO *bio;

    *error = 0;
    if (file == NULL) {
        *error = fail(r, "device.json: %s is missing or not a text", name);
        return NULL;
    }
    *data = file_read(r->at, file, MAX_FILE, length);
    if (*data == NULL) {
        *error = fail(r, "device.json: %s: %s: %s", name, file, strerror(errno));
        return NULL;
    }
    bio = BIO_new_mem_buf(*data, (int)*length);
    if (bio == NULL)
        *error = BOUNCER_MEMORY;
    return bio;
}

static int take_signing_key(struct reading *r, json_t *object)
{
    char *data = NULL;
    size_t length = 0;
    int error;
    BIO *bio = open_pem(r, object, "signing_key", &data, &length, &error);
    bouncer_key raw;
    uint8_t buffer[65];

    if (bio != NULL) {
        r->bundle->signing_key = PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL);
        if (r->bundle->signing_key == NULL || bouncer_openssl_key(r->bundle->signing_key, &raw, buffer) != 0 ||
            raw.algorithm != r->bundle->device.algorithm)
            error = fail(r, "device.json: signing_key: no private key of the algorithm, in PEM, without a password");
    }
    BIO_free(bio);
    if (data != NULL)
        OPENSSL_cleanse(data, length);
    free(data);
    ERR_clear_error();
    return error;
}

static int take_command_keys(struct reading *r, json_t *object)
{
    struct bundle *b = r->bundle;
    char *data = NULL;
    size_t length = 0;
    EVP_PKEY *key;
    const char *at;
    BIO *bio;
    int error, seen = 0, begun = 0;

    if (json_object_get(object, "command_keys") == NULL)
        return 0;
    bio = open_pem(r, object, "command_keys", &data, &length, &error);
    b->device.keys = b->keys;
    while (bio != NULL && (key = PEM_read_bio_PUBKEY(bio, NULL, no_password, NULL)) != NULL) {
        size_t n = b->device.key_count;
        if (++seen > BOUNCER_MAX_KEYS) {
            EVP_PKEY_free(key);
            error = fail(r, "device.json: command_keys: more than %d keys", BOUNCER_MAX_KEYS);
            break;
        }
        /* A key of another algorithm is ignored. */
        if (bouncer_openssl_key(key, &b->keys[n], b->points[n]) == 0)
            b->device.key_count++;
        EVP_PKEY_free(key);
    }
    if (error == 0 && seen == 0)
        error = fail(r, "device.json: command_keys: no public key in PEM");
    for (at = data; error == 0 && at != NULL && (at = strstr(at, "-----BEGIN ")) != NULL; at++)
        begun++;
    if (error == 0 && begun != seen)
        error = fail(r, "device.json: command_keys: what follows key %d is no public key", seen);
    BIO_free(bio);
    free(data);
    ERR_clear_error();
    return error;
}

static int take_credential(struct reading *r, json_t *object)
{
    const char *algorithm = text_of(object, "algorithm");
    bouncer_device *device = &r->bundle->device;
    int error;

    if (algorithm != NULL && strcmp(algorithm, "HMAC-SHA256") == 0) {
        device->algorithm = BOUNCER_HMAC_SHA256;
        error = take_secret(r, object);
    } else if (algorithm != NULL && (strcmp(algorithm, "Ed25519") == 0 || strcmp(algorithm, "ECDSA P-256") == 0)) {
        device->algorithm = strcmp(algorithm, "Ed25519") == 0 ? BOUNCER_ED25519 : BOUNCER_ECDSA_P256;
        error = take_signing_key(r, object);
        if (error == 0)
            error = take_command_keys(r, object);
    } else {
        return fail(r, "device.json: algorithm is not HMAC-SHA256, Ed25519 or ECDSA P-256");
    }
    return error;
}

static int take_all(struct reading *r, json_t *object)
{
    struct bundle *b = r->bundle;
    const char *id = text_of(object, "device_id"), *host = text_of(object, "host");
    json_t *port = json_object_get(object, "port"), *tolerance = json_object_get(object, "tolerance");
    char out[512];
    size_t length;
    int error;

    if (!json_is_object(object))
        return fail(r, "device.json: not an object");
    if (id == NULL || strlen(id) > BOUNCER_MAX_DEVICE_ID)
        return fail(r, "device.json: device_id is missing or no device id");
    strcpy(b->id, id);
    b->device.id = bouncer_string(b->id);
    b->device.crypto = &b->crypto;
    if (host == NULL || strlen(host) > 255)
        return fail(r, "device.json: host is missing or no host");
    if (!json_is_integer(port) || json_integer_value(port) < 1 || json_integer_value(port) > 65535)
        return fail(r, "device.json: port is not 1 to 65535");
    b->port = (int)json_integer_value(port);
    if (tolerance != NULL && (!json_is_integer(tolerance) || json_integer_value(tolerance) < 0 || json_integer_value(tolerance) > 86400))
        return fail(r, "device.json: tolerance is not 0 to 86400 seconds");
    b->tolerance = (unsigned)json_integer_value(tolerance);
    b->host = strdup(host);
    if (b->host == NULL)
        return BOUNCER_MEMORY;
    if ((error = take_path(r, object, "ca", &b->ca)) != 0 || (error = take_path(r, object, "certificate", &b->certificate)) != 0 ||
        (error = take_path(r, object, "key", &b->key)) != 0 || (error = take_topics(r, object)) != 0 ||
        (error = take_credential(r, object)) != 0)
        return error;
    bouncer_openssl(&b->crypto, b->signing_key);
    /* Once, so that a credential that cannot sign is found here. Nothing of it is sent. */
    error = (int)bouncer_sign(&b->device, 0, bouncer_string("00000000-0000-4000-8000-000000000000"), bouncer_string("0"), out, sizeof out,
                              &length);
    OPENSSL_cleanse(out, sizeof out);
    if (error != 0)
        return fail(r, "device.json: the credential cannot sign: %s", bouncer_error_name((bouncer_error)error));
    return 0;
}

int bundle_read(struct bundle *bundle, const char *directory, size_t max_message, char *message, size_t size)
{
    struct reading r;
    json_error_t where;
    json_t *object = NULL;
    size_t length;
    char *text;
    int error;

    memset(bundle, 0, sizeof *bundle);
    r.bundle = bundle;
    r.directory = directory;
    r.message = message;
    r.size = size;
    r.at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r.at < 0)
        return fail(&r, "%s: %s", directory, strerror(errno));
    text = file_read(r.at, "device.json", MAX_FILE, &length);
    if (text == NULL)
        error = fail(&r, "%s/device.json: %s", directory, strerror(errno));
    else if ((object = json_loadb(text, length, 0, &where)) == NULL)
        error = fail(&r, "device.json: line %d: %s", where.line, where.text);
    else
        error = take_all(&r, object);
    json_decref(object);
    free(text);
    close(r.at);
    bundle->device.max_message = max_message;
    if (error == BOUNCER_MEMORY)
        (void)fail(&r, "out of memory");
    if (error != 0)
        bundle_free(bundle);
    return error;
}

void bundle_free(struct bundle *bundle)
{
    free(bundle->host);
    free(bundle->ca);
    free(bundle->certificate);
    free(bundle->key);
    free(bundle->data);
    free(bundle->response);
    free(bundle->rejected);
    free(bundle->command);
    free(bundle->result);
    if (bundle->secret.data != NULL) {
        char *secret = (char *)(uintptr_t)bundle->secret.data;
        OPENSSL_cleanse(secret, bundle->secret.length);
        free(secret);
    }
    EVP_PKEY_free(bundle->signing_key);
    memset(bundle, 0, sizeof *bundle);
}
