/*
 * bouncer_device: signs what a device publishes, and checks the commands that it gets.
 *
 * The core in C99. It allocates nothing, does no I/O, has no clock, no global state and no recursion. It works in the
 * caller's buffers. device/README.md of mosquitto-bouncer is the specification; README.md next to this library says how
 * to use it in firmware.
 *
 * All functions may be called from several threads at once, as long as no two of them write the same object.
 */
#ifndef BOUNCER_DEVICE_H
#define BOUNCER_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BOUNCER_VERSION "1.0.0"

/* Limits, in bytes. */
#define BOUNCER_MAX_DEVICE_ID 64
#define BOUNCER_UUID_LENGTH 36
#define BOUNCER_MAX_MESSAGE 65536 /* of a message to publish, unless set in bouncer_device */
#define BOUNCER_MAX_COMMAND 66560 /* of a message on the command topic */
#define BOUNCER_MAX_NOTICE 4096   /* of a message on the rejected topic */
#define BOUNCER_MAX_DEPTH 64      /* nesting of objects and arrays, the message's own object counted */
#define BOUNCER_MAX_KEYS 8        /* public keys of the gateway */

/* 2^53 - 1 is the greatest timestamp, expiry and server time. */
#define BOUNCER_MAX_TIME INT64_C(9007199254740991)

/* In place of the time, on a device without a clock. */
#define BOUNCER_NO_CLOCK INT64_C(-1)

/*
 * What a message adds to the payload: 107 bytes, the device id, at most 16 digits of the timestamp, and the signature. A buffer
 * of BOUNCER_OVERHEAD + the payload's length is enough for every algorithm and every device id.
 */
#define BOUNCER_OVERHEAD (130 + BOUNCER_MAX_DEVICE_ID + 128)

/* The payload of an answer without its result: a buffer of this + the result's length is enough. */
#define BOUNCER_ANSWER_OVERHEAD 96

/* What the functions return. bouncer_error_name gives the word of the specification. */
typedef enum bouncer_error {
    BOUNCER_OK = 0,
    /* Signing. */
    BOUNCER_DEVICE_ID,  /* not 1 to 64 of A-Z a-z 0-9 . _ : - */
    BOUNCER_TIMESTAMP,  /* not 0 to 9007199254740991 */
    BOUNCER_MESSAGE_ID, /* not a UUID of 36 characters, or of version 8 */
    BOUNCER_PAYLOAD,    /* not one JSON value as the gateway accepts it */
    BOUNCER_TOO_LARGE,  /* the message would be longer than the limit */
    /* Verifying. */
    BOUNCER_MALFORMED,     /* not a message of the right form */
    BOUNCER_FOREIGN,       /* for another device */
    BOUNCER_FORGED,        /* no key or secret of the device's verifies it */
    BOUNCER_EXPIRED,       /* too late, or below the floor of the memory */
    BOUNCER_REPEATED,      /* the memory has it: do not execute it, publish its answer again */
    BOUNCER_BAD_SIGNATURE, /* bouncer_verify_message only */
    /* Mistakes of the program. */
    BOUNCER_CREDENTIAL,  /* no usable secret, key or function for the algorithm */
    BOUNCER_CRYPTO,      /* the function for the cryptography failed */
    BOUNCER_UNSUPPORTED, /* the function for the cryptography does not have the algorithm */
    BOUNCER_BUFFER,      /* the caller's buffer is too small */
    BOUNCER_ARGUMENT     /* a null pointer, an unknown status, a damaged memory of commands */
} bouncer_error;

/* Returns a constant text such as "too_large"; "unknown" for what is no bouncer_error. */
const char *bouncer_error_name(bouncer_error error);

/* Bytes that belong to the caller. There is no NUL at their end. */
typedef struct bouncer_text {
    const char *data;
    size_t length;
} bouncer_text;

/* The text of a string that ends with a NUL; without the NUL. */
bouncer_text bouncer_string(const char *string);

typedef enum bouncer_algorithm {
    BOUNCER_HMAC_SHA256 = 1,
    BOUNCER_ED25519 = 2,
    BOUNCER_ECDSA_P256 = 3
} bouncer_algorithm;

/*
 * A public key of the gateway. Ed25519: the 32 bytes of RFC 8032. P-256: the 65 bytes of the uncompressed point, 0x04, x,
 * y, most significant byte first. These are the last 32 or 65 bytes of the key in DER:
 * openssl pkey -pubin -in KEY.pem -outform DER | tail -c 65
 */
typedef struct bouncer_key {
    bouncer_algorithm algorithm;
    const uint8_t *data;
    size_t length;
} bouncer_key;

/*
 * What is signed: the two parts, one directly after the other. When the core signs, the second part follows the first in
 * memory too, so that a function that needs the bytes in one piece can take head.data and head.length + tail.length. When
 * it verifies, the parts are in different places.
 */
typedef struct bouncer_signed {
    const uint8_t *head;
    size_t head_length; /* at most 116 */
    const uint8_t *tail;
    size_t tail_length;
} bouncer_signed;

/*
 * The cryptography: an adapter of this library, or functions of your own for a secure element. Each gets the pointer that
 * stands behind it, and returns 0 on success; everything else is a failure, BOUNCER_UNSUPPORTED the one that says that the
 * algorithm is missing. A function that is not needed may be NULL: HMAC-SHA256 needs the first alone, the other algorithms
 * need sign for publishing and verify for commands.
 */
typedef struct bouncer_crypto {
    /* HMAC-SHA256 under the secret. */
    int (*hmac)(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32]);
    void *hmac_context;
    /*
     * Signs with the device's private key, which the context knows. Ed25519: RFC 8032 over the bytes. P-256: r and s, 32
     * bytes each, most significant first, of ECDSA over the SHA-256 of the bytes. The core makes a high s low.
     */
    int (*sign)(void *context, bouncer_algorithm algorithm, const bouncer_signed *bytes, uint8_t signature[64]);
    void *sign_context;
    /* Verifies a signature of the same form with a public key. The core has refused a high s before. */
    int (*verify)(void *context, const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64]);
    void *verify_context;
} bouncer_crypto;

/*
 * A device and its credential. All is the caller's, is not changed, and has to stay while it is used. Set what is not
 * needed to zero.
 */
typedef struct bouncer_device {
    bouncer_text id;
    bouncer_algorithm algorithm;
    /* HMAC-SHA256: the first secret signs, each verifies commands. 1 to 8. */
    const bouncer_text *secrets;
    size_t secret_count;
    /* Ed25519 and P-256: the gateway's public keys. Without one, no command is good. Keys of another algorithm are ignored. */
    const bouncer_key *keys;
    size_t key_count;
    const bouncer_crypto *crypto;
    /* The longest message to publish, in bytes. 0: BOUNCER_MAX_MESSAGE. */
    size_t max_message;
} bouncer_device;

/*
 * Signs a payload, a JSON text, and writes the message to publish into out, without a NUL. White space around the payload is
 * not sent. The message takes at most BOUNCER_OVERHEAD bytes more than the payload. The payload may itself lie in out.
 *
 * timestamp is in seconds since 1970-01-01 UTC. message_id is a UUID of 36 characters that was never used before.
 * On an error *length is 0, and out holds nothing to send.
 */
bouncer_error bouncer_sign(const bouncer_device *device, int64_t timestamp, bouncer_text message_id, bouncer_text payload,
                           char *out, size_t size, size_t *length);

/* Writes a UUID of version 4 made of 16 random bytes, and a NUL. The bytes have to come from a good random generator. */
void bouncer_uuid(const uint8_t random[16], char out[BOUNCER_UUID_LENGTH + 1]);

/* A command that was verified. The texts point into the message. */
typedef struct bouncer_command {
    bouncer_text id;      /* 36 characters, in the letter case of the message */
    bouncer_text command; /* the JSON text */
    int64_t timestamp;    /* when it was made */
    int64_t expires;      /* when it ends; both in seconds since 1970 */
} bouncer_command;

/*
 * Checks a message of the command topic. now is the time in seconds since 1970, or BOUNCER_NO_CLOCK. Returns BOUNCER_OK,
 * BOUNCER_MALFORMED, BOUNCER_FOREIGN, BOUNCER_FORGED or BOUNCER_EXPIRED, or a mistake of the program. Unless it is
 * BOUNCER_OK, *command is all zero. A good command is then given to bouncer_memory_take, before anything is done with it.
 */
bouncer_error bouncer_verify_command(const bouncer_device *device, const char *message, size_t length, int64_t now,
                                     bouncer_command *command);

/*
 * Checks a message as the gateway checks it, for the payload as sent: with the device's own secrets, or with keys, which
 * are then the device's own public keys. For tests. Returns BOUNCER_OK, BOUNCER_MALFORMED or BOUNCER_BAD_SIGNATURE.
 */
bouncer_error bouncer_verify_message(const bouncer_device *device, const char *message, size_t length);

/*
 * The memory of commands. entries and floor are plain data: write the first count entries, count and floor to the flash or
 * disk after each bouncer_memory_take that returned BOUNCER_OK and before the command is executed, in a way that keeps
 * either the old or the new state if the power fails. After a restart set entries, capacity, count and floor to what was
 * written. The order of the entries means nothing.
 */
typedef struct bouncer_memory_entry {
    uint8_t id[16];
    int64_t expires;
} bouncer_memory_entry;

typedef struct bouncer_memory {
    bouncer_memory_entry *entries;
    size_t capacity; /* 256 is usual, 1 is the least */
    size_t count;
    int64_t floor; /* 0 at first */
} bouncer_memory;

/*
 * Returns BOUNCER_OK if the command is new: it is in the memory now and may be executed. BOUNCER_REPEATED: publish its
 * answer again. BOUNCER_EXPIRED: forget it. BOUNCER_ARGUMENT, with nothing changed, if the memory cannot be right or the id is
 * no UUID. Takes time in proportion to count.
 */
bouncer_error bouncer_memory_take(bouncer_memory *memory, bouncer_text id, int64_t expires);

typedef enum bouncer_status {
    BOUNCER_SUCCEEDED = 1, /* done */
    BOUNCER_FAILED = 2,    /* tried without success */
    BOUNCER_REJECTED = 3   /* not tried */
} bouncer_status;

/*
 * Writes the payload of an answer into out, without a NUL: sign it with bouncer_sign and publish it to the command topic with
 * "/result" behind it. result is a JSON text, or {NULL, 0} for none. BOUNCER_PAYLOAD: the result is not one. BOUNCER_TOO_LARGE:
 * the payload alone is longer than the device's longest message.
 */
bouncer_error bouncer_answer(const bouncer_device *device, bouncer_text command_id, bouncer_status status, bouncer_text result,
                             char *out, size_t size, size_t *length);

/* A notice of the rejected topic. The texts point into the message. */
typedef struct bouncer_notice {
    bouncer_text message_id; /* {NULL, 0} if the gateway could not read it */
    bouncer_text reason;     /* between its quotes, as written; the gateway's reasons have no escapes */
    int64_t server_time;     /* the gateway's time, in seconds since 1970 */
} bouncer_notice;

/* Returns BOUNCER_OK or BOUNCER_MALFORMED: ignore the message then. */
bouncer_error bouncer_read_notice(const char *message, size_t length, bouncer_notice *notice);

/* Whether two message ids are the same UUID: letter case does not matter. */
int bouncer_same_id(bouncer_text a, bouncer_text b);

#ifdef __cplusplus
}
#endif

#endif
