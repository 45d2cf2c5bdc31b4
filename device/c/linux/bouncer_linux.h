/*
 * The Device for Linux: connects over MQTT 5 and TLS by libmosquitto, keeps what is not acknowledged on the disk, sends it again
 * where that is needed, and gives each command to a handler once. device/README.md, "The Device", says what it does.
 *
 * All functions may be called from any thread. The callbacks are called from threads of the Device; they may publish, and must not
 * close the Device. They are called one at a time, but for on_command, which has a thread of its own.
 */
#ifndef BOUNCER_LINUX_H
#define BOUNCER_LINUX_H

#include <bouncer_device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bouncer_linux bouncer_linux;
typedef struct bouncer_delivery bouncer_delivery;
typedef struct bouncer_reply bouncer_reply;

/* What the functions return beyond bouncer_error; bouncer_linux_error_name has the names of both. */
enum {
    BOUNCER_FULL = 100, /* the outbox has as many messages or bytes as it may have */
    BOUNCER_DISK,       /* the state directory cannot be read or written, or a file in it is damaged */
    BOUNCER_BUNDLE,     /* device.json or a file that it names cannot be used */
    BOUNCER_LOCKED,     /* another Device uses the state directory */
    BOUNCER_CLOSED,     /* the Device is closed, or cannot be started twice */
    BOUNCER_MEMORY,     /* out of memory or threads */
    BOUNCER_TIMEOUT     /* of bouncer_delivery_wait */
};

const char *bouncer_linux_error_name(int error);

typedef enum bouncer_result {
    BOUNCER_ACCEPTED = 1,
    BOUNCER_REFUSED = 2,
    BOUNCER_UNKNOWN = 3 /* sent, and too old to be sent again; with unknown_if_repeated only */
} bouncer_result;

/* "accepted", "refused" or "unknown". */
const char *bouncer_result_name(bouncer_result result);

typedef struct bouncer_outcome {
    uint64_t delivery; /* the number of the message in the outbox, the same over restarts */
    bouncer_result result;
    char message_id[BOUNCER_UUID_LENGTH + 1]; /* the last that it was sent with; empty if it was not signed */
    char reason[64];                          /* of a refusal: the gateway's reason, "mqtt 0x..", "unspecified" or a bouncer_error */
    unsigned sent;                            /* how often it was sent, with whatever id */
    int may_be_repeated;                      /* an earlier copy with another id may have been accepted too */
} bouncer_outcome;

typedef struct bouncer_linux_options {
    const char *state;        /* the state directory, made if it is not there; NULL: "state" in the bundle */
    size_t max_messages;      /* of the outbox; 0: 10000 */
    size_t max_bytes;         /* of payloads in the outbox; 0: 16 MiB */
    size_t max_message;       /* the gateway's limit for a message, at most 1 MiB; 0: BOUNCER_MAX_MESSAGE */
    unsigned tolerance;       /* the gateway's, in seconds, more than 30; 0: that of the bundle, else 300 */
    size_t commands;          /* how many commands are remembered, at most 65536; 0: 256 */
    int unknown_if_repeated;  /* do not sign again what may have been accepted: its outcome is unknown */
    void *context;            /* given to each function below; each may be NULL */
    int64_t (*now)(void *context); /* the system's time in seconds since 1970; NULL: time(2) */
    void (*on_outcome)(void *context, const bouncer_outcome *outcome);
    void (*on_connection)(void *context, int connected); /* connected and subscribed, or not any more */
    /* Executes a command and returns its status; bouncer_reply_* set the result. NULL: commands are answered with rejected. */
    bouncer_status (*on_command)(void *context, const bouncer_command *command, bouncer_reply *reply);
    void (*on_command_refused)(void *context, const char *reason); /* "forged" and so on, and "repeated" */
    void (*on_response)(void *context, const char *text, size_t length);
    void (*on_error)(void *context, const char *text);
    void (*log)(void *context, const char *line); /* NULL: no log. now and log must not call the Device */
} bouncer_linux_options;

/*
 * Reads the bundle, locks the state directory and reads the outbox. options may be NULL. On an error *device is NULL, and message,
 * which may be NULL, gets a text of at most size bytes that says what is wrong.
 */
int bouncer_linux_open(const char *bundle, const bouncer_linux_options *options, bouncer_linux **device, char *message, size_t size);

/* Connects, and goes on connecting until it is closed. Once for each Device. */
int bouncer_linux_start(bouncer_linux *device);

/*
 * Puts a payload, a JSON text, into the outbox. When it returns BOUNCER_OK the message is on the disk. BOUNCER_PAYLOAD and
 * BOUNCER_TOO_LARGE as bouncer_sign; BOUNCER_FULL, BOUNCER_DISK. delivery may be NULL; otherwise free it with bouncer_delivery_free.
 */
int bouncer_linux_publish(bouncer_linux *device, const char *payload, size_t length, bouncer_delivery **delivery);

/* The number that the outcome has too. */
uint64_t bouncer_delivery_number(const bouncer_delivery *delivery);

/* Waits for the outcome, at most so many milliseconds; below 0: without limit. BOUNCER_OK, BOUNCER_TIMEOUT or BOUNCER_CLOSED. */
int bouncer_delivery_wait(bouncer_delivery *delivery, int milliseconds, bouncer_outcome *outcome);

/* The message stays in the outbox. A delivery may be freed after its Device is closed. */
void bouncer_delivery_free(bouncer_delivery *delivery);

/* Sets the result of a command: a JSON text, or a text that is made a string of JSON. 0, or BOUNCER_PAYLOAD or BOUNCER_MEMORY. */
int bouncer_reply_json(bouncer_reply *reply, const char *json, size_t length);
int bouncer_reply_text(bouncer_reply *reply, const char *text);

/* Ends the connection in order, waits for a handler that runs, and frees the Device. What is in the outbox stays there. */
void bouncer_linux_close(bouncer_linux *device);

#ifdef __cplusplus
}
#endif

#endif
