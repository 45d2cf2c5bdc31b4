/* What is sent when, and what the outcomes mean: the table of device/README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/rand.h>

#include "internal.h"

#define AGAIN 2000     /* ms: after a refusal without a notice */
#define HOLD 1000      /* ms, doubled up to HOLD_MOST */
#define HOLD_MOST 60000
#define TRIES 3

static void finish(bouncer_linux *device, struct item *item, bouncer_result result, const char *reason)
{
    bouncer_outcome outcome;

    memset(&outcome, 0, sizeof outcome);
    outcome.delivery = item->delivery;
    outcome.result = result;
    memcpy(outcome.message_id, item->message_id, sizeof outcome.message_id);
    snprintf(outcome.reason, sizeof outcome.reason, "%s", reason);
    outcome.sent = item->sent;
    outcome.may_be_repeated = item->may_be_repeated;
    if (device->held == item) {
        device->held = NULL;
        device->held_delay = 0;
    }
    if (item->waiting != NULL) {
        delivery_end(item->waiting, BOUNCER_OK, &outcome);
        item->waiting = NULL;
    }
    if (item->kind == ITEM_DATA)
        report_outcome(device, &outcome);
    else if (result != BOUNCER_ACCEPTED)
        report_error(device, "the answer to a command was refused: %s", reason);
    log_line(device, "delivery %llu: %s %s", (unsigned long long)item->delivery, bouncer_result_name(result), reason);
    if (journal_done(&device->journal, item) != 0)
        report_error(device, "the outbox cannot be written");
}

/* It may have been accepted, and cannot be sent as it is: 0 if it is signed again, 1 if it was finished. */
static int sign_again(bouncer_linux *device, struct item *item, int repeated)
{
    if (repeated && device->options.unknown_if_repeated) {
        finish(device, item, BOUNCER_UNKNOWN, "");
        return 1;
    }
    if (repeated)
        item->may_be_repeated = 1;
    forget_signature(&device->journal, item);
    return 0;
}

/* Signs an item and writes that down, not synced yet. */
static int sign(bouncer_linux *device, struct item *item)
{
    size_t room = item->payload_length + BOUNCER_OVERHEAD;
    bouncer_text payload;
    uint8_t random[16];
    char *message = malloc(room);
    int64_t time = device_time(device);
    size_t length = 0;
    int error = BOUNCER_CRYPTO;

    if (message == NULL)
        return BOUNCER_MEMORY;
    payload.data = item->payload;
    payload.length = item->payload_length;
    if (RAND_bytes(random, sizeof random) == 1) {
        bouncer_uuid(random, item->message_id);
        error = (int)bouncer_sign(&device->bundle.device, time, bouncer_string(item->message_id), payload, message, room, &length);
    }
    if (error != BOUNCER_OK) {
        free(message);
        return error;
    }
    item->message = message;
    item->message_length = length;
    item->timestamp = time;
    if (journal_signed(&device->journal, item) != 0) {
        /* Not counted as written, so it is not subtracted. */
        free(item->message);
        item->message = NULL;
        item->message_length = 0;
        return BOUNCER_DISK;
    }
    return BOUNCER_OK;
}

static int too_old(bouncer_linux *device, const struct item *item)
{
    return device_time(device) - item->timestamp > (int64_t)device->options.tolerance - 30;
}

/* Makes an item ready to be sent and puts it on the disk; 0 if it is to be sent now. *syncing is set if a sync is needed. */
static int prepare(bouncer_linux *device, struct item *item, int *syncing)
{
    int error;

    if (item->message != NULL && too_old(device, item) && sign_again(device, item, item->unanswered > 0) != 0)
        return -1;
    if (item->message != NULL) {
        if (journal_sent(&device->journal, item) == 0)
            return 0;
        error = BOUNCER_DISK;
    } else {
        error = sign(device, item);
        if (error == BOUNCER_OK) {
            *syncing = 1;
            return 0;
        }
    }
    if (error != BOUNCER_DISK && error != BOUNCER_MEMORY) {
        /* It was good when it was published; it would be the same next time. */
        finish(device, item, BOUNCER_REFUSED, bouncer_linux_error_name(error));
        return -1;
    }
    report_error(device, "the outbox cannot be written");
    item->until = monotonic_ms() + HOLD;
    return -1;
}

void send_what_is_due(bouncer_linux *device)
{
    struct item *batch[WINDOW], *item, *next;
    int64_t now = monotonic_ms();
    size_t n = 0, i;
    unsigned in_flight = 0;
    int syncing = 0;

    for (item = device->journal.first; item != NULL; item = next) {
        next = item->next;
        if (item->state == ITEM_REFUSED && item->until <= now) {
            /* No notice came. */
            device->window = 1;
            if (++item->silent >= TRIES) {
                finish(device, item, BOUNCER_REFUSED, "unspecified");
                continue;
            }
            item->state = ITEM_READY;
            item->until = now + AGAIN;
            if (item->copies <= 1)
                forget_signature(&device->journal, item);
        } else if (item->state == ITEM_IN_FLIGHT) {
            in_flight++;
        }
    }
    if (!device->ready || device->lost || (device->held != NULL && device->held_until > now))
        return;
    for (item = device->journal.first; item != NULL && in_flight + n < device->window; item = next) {
        next = item->next;
        if (item->state != ITEM_READY || item->until > now || (device->held != NULL && device->held != item))
            continue;
        if (prepare(device, item, &syncing) == 0)
            batch[n++] = item;
    }
    /* What was signed is on the disk before it is sent. */
    if (syncing && journal_sync(&device->journal) != 0) {
        report_error(device, "the outbox cannot be written");
        for (i = 0; i < n; i++) {
            if (batch[i]->copies == 0)
                forget_signature(&device->journal, batch[i]);
            batch[i]->until = now + HOLD;
        }
        return;
    }
    for (i = 0; i < n; i++) {
        item = batch[i];
        item->copies++;
        item->sent++;
        item->reason[0] = '\0';
        item->mid = connection_publish(device, item->kind == ITEM_ANSWER ? device->bundle.result : device->bundle.data, item->message,
                                       item->message_length);
        if (item->mid == PUBLISH_TOO_LARGE) {
            item->sent--;
            finish(device, item, BOUNCER_REFUSED, "mqtt 0x95"); /* it would be so each time */
        } else if (item->mid < 0) {
            /* The connection is at its end. */
            item->unanswered++;
            item->until = now + HOLD;
        } else {
            item->state = ITEM_IN_FLIGHT;
        }
    }
}

/* When send_what_is_due has to be called next, if nothing happens before; in monotonic ms. */
int64_t next_due(bouncer_linux *device, int64_t now)
{
    int64_t due = now + 1000;
    struct item *item;

    for (item = device->journal.first; item != NULL; item = item->next)
        if (item->state != ITEM_IN_FLIGHT && item->until > now && item->until < due)
            due = item->until;
    if (device->held != NULL && device->held_until > now && device->held_until < due)
        due = device->held_until;
    return due;
}

static int is_one_of(const char *reason, const char *const *list)
{
    while (*list != NULL && strcmp(*list, reason) != 0)
        list++;
    return *list != NULL;
}

/* Refused with 0x87, and the notice has said why. */
static void refused(bouncer_linux *device, struct item *item)
{
    static const char *const clock[] = {"stale", "future", NULL}, *const later[] = {"rate_limited", "overloaded", "internal", NULL};
    char reason[sizeof item->reason];

    memcpy(reason, item->reason, sizeof reason);
    item->reason[0] = '\0';
    item->state = ITEM_READY;
    item->until = 0;
    if (is_one_of(reason, clock)) {
        if (++item->stale >= TRIES)
            finish(device, item, BOUNCER_REFUSED, reason);
        else
            (void)sign_again(device, item, item->copies > 1);
    } else if (strcmp(reason, "replay") == 0) {
        finish(device, item, item->copies > 1 ? BOUNCER_ACCEPTED : BOUNCER_REFUSED, item->copies > 1 ? "" : reason);
    } else if (is_one_of(reason, later)) {
        int64_t now = monotonic_ms();
        if (device->held == NULL || device->held == item) {
            int64_t delay = device->held_delay == 0 ? HOLD : 2 * device->held_delay;
            device->held_delay = delay < HOLD_MOST ? delay : HOLD_MOST;
            device->held_until = now + device->held_delay;
            device->held = item;
        } else if (item->delivery < device->held->delivery) {
            device->held = item; /* the order in which they came */
        }
        device->window = 1;
    } else {
        finish(device, item, BOUNCER_REFUSED, reason);
    }
}

void acknowledged(bouncer_linux *device, int mid, int code)
{
    struct item *item = device->journal.first;
    char reason[16];

    while (item != NULL && (item->state != ITEM_IN_FLIGHT || item->mid != mid))
        item = item->next;
    if (item == NULL)
        return;
    if (code < 0x80) {
        if (device->window < WINDOW)
            device->window = device->window * 2 < WINDOW ? device->window * 2 : WINDOW;
        finish(device, item, BOUNCER_ACCEPTED, "");
    } else if (code != 0x87) {
        snprintf(reason, sizeof reason, "mqtt 0x%02x", (unsigned)code & 0xff);
        finish(device, item, BOUNCER_REFUSED, reason);
    } else if (item->reason[0] != '\0') {
        refused(device, item);
    } else {
        item->state = ITEM_REFUSED;
        item->until = monotonic_ms() + NOTICE_WAIT;
    }
}

void noticed(bouncer_linux *device, const char *message, size_t length)
{
    struct item *item;
    bouncer_notice notice;

    if (bouncer_read_notice(message, length, &notice) != BOUNCER_OK || notice.message_id.data == NULL)
        return;
    for (item = device->journal.first; item != NULL; item = item->next)
        if (item->state != ITEM_READY && bouncer_same_id(bouncer_string(item->message_id), notice.message_id))
            break;
    if (item == NULL)
        return;
    if (notice.reason.length == 0 || notice.reason.length >= sizeof item->reason || memchr(notice.reason.data, '\\', notice.reason.length))
        return;
    memcpy(item->reason, notice.reason.data, notice.reason.length);
    item->reason[notice.reason.length] = '\0';
    if (strcmp(item->reason, "stale") == 0 || strcmp(item->reason, "future") == 0) {
        char text[32];
        int64_t system = device_time(device) - device->offset;
        device->offset = notice.server_time - system;
        snprintf(text, sizeof text, "%lld\n", (long long)device->offset);
        log_line(device, "the clock is corrected by %lld s", (long long)device->offset);
        if (file_replace(device->directory, "clock", text, strlen(text)) != 0)
            report_error(device, "the offset of the clock cannot be written");
    }
    if (item->state == ITEM_REFUSED)
        refused(device, item);
}

void connection_ended(bouncer_linux *device)
{
    struct item *item, *next;

    for (item = device->journal.first; item != NULL; item = next) {
        next = item->next;
        if (item->state == ITEM_IN_FLIGHT) {
            item->state = ITEM_READY;
            item->until = 0;
            item->unanswered++;
        } else if (item->state == ITEM_REFUSED) {
            item->until = 0; /* its notice cannot come any more */
        } else {
            item->until = 0;
        }
    }
    device->window = WINDOW;
}
