/* What the files of the Device share. Internal: not installed. */
#ifndef BOUNCER_LINUX_INTERNAL_H
#define BOUNCER_LINUX_INTERNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>

#include "bouncer_linux.h"
#include "bouncer_openssl.h"

#define WINDOW 16            /* messages without an acknowledgement */
#define MAX_FILE 65536       /* of the bundle */
#define MAX_QUEUE 256        /* commands that wait for the handler */
#define MAX_PACKET (1 << 20) /* what the broker may send, in bytes */
#define MAX_EVENTS 1024      /* that wait to be reported; outcomes are never dropped */
#define MAX_EVENT_BYTES (16 << 20)
#define NOTICE_WAIT 2000     /* ms */

/* bundle.c: what device.json says. */
struct bundle {
    char *host, *ca, *certificate, *key;
    char *data, *response, *rejected, *command, *result; /* topics; NULL if absent */
    int port;
    unsigned tolerance; /* in seconds; 0 if absent */
    bouncer_device device;
    bouncer_crypto crypto;
    char id[BOUNCER_MAX_DEVICE_ID + 1];
    bouncer_text secret;
    EVP_PKEY *signing_key;
    bouncer_key keys[BOUNCER_MAX_KEYS];
    uint8_t points[BOUNCER_MAX_KEYS][65];
};

int bundle_read(struct bundle *bundle, const char *directory, size_t max_message, char *message, size_t size);
void bundle_free(struct bundle *bundle);

/* files.c. Each returns 0, or -1 with errno set. */
char *path_of(const char *directory, const char *name);
/* Reads a whole file of at most limit bytes; a NUL is put behind it. NULL with errno ENOENT if there is none. */
char *file_read(int directory, const char *name, size_t limit, size_t *length);
/* Replaces a file: after a crash there is the old or the new one. */
int file_replace(int directory, const char *name, const void *data, size_t length);
int write_all(int file, const void *data, size_t length);

enum item_kind { ITEM_DATA = 0, ITEM_ANSWER = 1 };
enum item_state { ITEM_READY, ITEM_IN_FLIGHT, ITEM_REFUSED /* its notice has not come yet */ };

/* A message of the outbox. */
struct item {
    struct item *next;
    uint64_t delivery;
    enum item_kind kind;
    char *payload;
    size_t payload_length;
    char *message; /* as signed, or NULL */
    size_t message_length;
    char message_id[BOUNCER_UUID_LENGTH + 1];
    int64_t timestamp;
    unsigned sent;       /* how often, in all */
    unsigned copies;     /* how often these bytes */
    unsigned unanswered; /* and how many of these have no acknowledgement, and will have none */
    unsigned stale, silent;
    int may_be_repeated;
    enum item_state state;
    int mid;
    int64_t until; /* monotonic ms: of ITEM_READY when it may be sent, of ITEM_REFUSED how long its notice is waited for */
    char reason[64]; /* of the notice for message_id, or empty */
    bouncer_delivery *waiting;
};

struct bouncer_delivery {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned references;
    int state; /* -1: not yet, BOUNCER_OK or BOUNCER_CLOSED */
    uint64_t number;
    bouncer_outcome outcome;
};

void delivery_end(bouncer_delivery *delivery, int state, const bouncer_outcome *outcome);

/* journal.c: the outbox on the disk. */
struct journal {
    int directory, file;
    uint64_t size, live; /* bytes of the file, and what it would have if it were written again */
    uint64_t next;       /* delivery */
    struct item *first, *last;
    size_t count, bytes;
};

/* damaged is set if the end was cut off. */
int journal_open(struct journal *journal, int directory, int *damaged);
void journal_close(struct journal *journal);
struct item *journal_add(struct journal *journal, enum item_kind kind, const char *payload, size_t length);
int journal_signed(struct journal *journal, struct item *item);
int journal_sent(struct journal *journal, struct item *item);
int journal_sync(struct journal *journal);
/* Takes the item out and frees it. A crash may bring it back: it is then sent again as it was, which the gateway recognises. */
int journal_done(struct journal *journal, struct item *item);
void forget_signature(struct journal *journal, struct item *item);

enum event_kind { EVENT_OUTCOME, EVENT_CONNECTION, EVENT_COMMAND_REFUSED, EVENT_RESPONSE, EVENT_ERROR };

struct event {
    struct event *next;
    enum event_kind kind;
    bouncer_outcome outcome;
    int connected;
    size_t length;
    char text[1]; /* and more */
};

struct queued_command {
    struct queued_command *next;
    size_t length;
    char message[1]; /* and more */
};

struct mosquitto;

struct bouncer_linux {
    pthread_mutex_t lock; /* of all that follows but bundle and options */
    pthread_cond_t changed;
    struct bundle bundle;
    bouncer_linux_options options;
    int directory, answers, lock_file, wake;
    int started, stopping;
    pthread_t worker, executor;
    int64_t offset; /* of the clock */
    struct journal journal;
    struct event *events, **events_end;
    size_t event_count, event_bytes;

    /* delivery.c */
    struct item *held; /* what the gateway refused for the time being: nothing else is sent */
    int64_t held_until, held_delay;
    unsigned window;

    /* connection.c */
    struct mosquitto *mosquitto;
    int connected, ready, lost, subscription;

    /* commands.c */
    bouncer_memory memory;
    struct queued_command *queue, **queue_end;
    size_t queue_count;
};

int64_t monotonic_ms(void);
int64_t device_time(bouncer_linux *device); /* seconds, the offset counted */
void wake_worker(bouncer_linux *device);
/* The lock is held for these. */
void report_outcome(bouncer_linux *device, const bouncer_outcome *outcome);
void report_connection(bouncer_linux *device, int connected);
void report(bouncer_linux *device, enum event_kind kind, const char *text, size_t length);
void report_error(bouncer_linux *device, const char *format, ...) __attribute__((format(printf, 2, 3)));
void log_line(bouncer_linux *device, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Whether the gateway would take it: BOUNCER_OK, BOUNCER_PAYLOAD or BOUNCER_TOO_LARGE. */
int check_payload(bouncer_linux *device, const char *payload, size_t length);
/* Puts it into the outbox, and on the disk. */
int enqueue(bouncer_linux *device, enum item_kind kind, const char *payload, size_t length, bouncer_delivery *delivery);

/* delivery.c; the lock is held. */
void send_what_is_due(bouncer_linux *device);
int64_t next_due(bouncer_linux *device, int64_t now);
void acknowledged(bouncer_linux *device, int mid, int code);
void noticed(bouncer_linux *device, const char *message, size_t length);
void connection_ended(bouncer_linux *device);

/* connection.c: the thread that connects. */
void *connection_run(void *device);
/* Gives a message to libmosquitto; its mid, -1 or PUBLISH_TOO_LARGE, if the broker takes no packet so large. */
#define PUBLISH_TOO_LARGE (-2)
int connection_publish(bouncer_linux *device, const char *topic, const char *message, size_t length);

/* commands.c */
int commands_open(bouncer_linux *device);
void command_received(bouncer_linux *device, const char *message, size_t length); /* the lock is held */
void *commands_run(void *device);
void commands_close(bouncer_linux *device);

#endif
