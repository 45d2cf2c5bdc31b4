/*
 * Tests the Device without a broker: outbox, state directory, commands, and what each acknowledgement and notice leads to. The
 * connection is a fake one, that writes down what is published.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "internal.h"

static unsigned long checks, failures;

static void check(int good, const char *what, int line)
{
    checks++;
    if (!good) {
        failures++;
        printf("FAIL line %d: %s\n", line, what);
    }
}

#define CHECK(condition) check((condition), #condition, __LINE__)

/* The fake connection. */

struct published {
    char topic[64], *message;
};

static struct published sent[4096];
static size_t sent_count;

static size_t largest_packet = SIZE_MAX; /* that the broker takes */

int connection_publish(bouncer_linux *device, const char *topic, const char *message, size_t length)
{
    struct published *p = &sent[sent_count];

    (void)device;
    if (length > largest_packet)
        return PUBLISH_TOO_LARGE;
    if (sent_count == sizeof sent / sizeof sent[0])
        abort();
    snprintf(p->topic, sizeof p->topic, "%s", topic);
    p->message = malloc(length + 1);
    memcpy(p->message, message, length);
    p->message[length] = '\0';
    return (int)++sent_count;
}

void *connection_run(void *device)
{
    (void)device;
    return NULL;
}

static void forget_sent(void)
{
    while (sent_count > 0)
        free(sent[--sent_count].message);
}

/* In place of libc's: the last directory that was synced. */
static ino_t synced_directory;

int fsync(int file)
{
    struct stat about;

    if (fstat(file, &about) == 0 && S_ISDIR(about.st_mode))
        synced_directory = about.st_ino;
    return (int)syscall(SYS_fsync, file);
}

/* The bundle and the state. */

static char directory[] = "/dev/shm/bouncer-outbox-XXXXXX"; /* in memory, for many files are synced */
static char bundle[256], state[256];
static int64_t clock_now = 1727712000;
static const char secret[] = "supersecretkey123";

static void write_file(const char *in, const char *name, const char *text, size_t length)
{
    char path[512];
    int file;

    snprintf(path, sizeof path, "%s/%s", in, name);
    file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write_all(file, text, length) != 0)
        abort();
    close(file);
}

static void write_bundle(const char *members)
{
    char json[2048];

    snprintf(json, sizeof json,
             "{\"device_id\":\"sensor_001\",\"host\":\"127.0.0.1\",\"port\":8883,%s,\"ca\":\"ca.crt\",\"certificate\":\"ca.crt\",\"key\":"
             "\"ca.crt\",\"more\":[],\"topics\":{\"data\":\"d/data\",\"rejected\":\"d/rejected\",\"command\":\"d/command\"}}",
             members);
    write_file(bundle, "device.json", json, strlen(json));
}

static int64_t now(void *context)
{
    (void)context;
    return clock_now;
}

static bouncer_linux *open_with(const bouncer_linux_options *given)
{
    bouncer_linux_options options = *given;
    bouncer_linux *device;
    char message[512] = "";
    int error;

    options.state = state;
    options.now = now;
    error = bouncer_linux_open(bundle, &options, &device, message, sizeof message);
    if (error != BOUNCER_OK) {
        printf("FAIL open: %s\n", message);
        exit(1);
    }
    device->ready = 1;
    return device;
}

static bouncer_linux *open_device(void)
{
    bouncer_linux_options options;

    memset(&options, 0, sizeof options);
    return open_with(&options);
}

static void clear_state(void)
{
    char command[600];

    snprintf(command, sizeof command, "rm -rf '%s'", state);
    if (system(command) != 0)
        abort();
    forget_sent();
}

static int publish(bouncer_linux *device, const char *payload)
{
    return bouncer_linux_publish(device, payload, strlen(payload), NULL);
}

/* The last outcome that was reported, taken out. */
static bouncer_outcome outcome(bouncer_linux *device)
{
    bouncer_outcome last;
    struct event **link = &device->events;

    memset(&last, 0, sizeof last);
    while (*link != NULL && (*link)->kind != EVENT_OUTCOME)
        link = &(*link)->next;
    if (*link != NULL) {
        struct event *event = *link;
        last = event->outcome;
        *link = event->next;
        device->event_count--;
        free(event);
    }
    device->events_end = &device->events;
    while (*device->events_end != NULL)
        device->events_end = &(*device->events_end)->next;
    return last;
}

static int reported(bouncer_linux *device, enum event_kind kind, const char *text)
{
    const struct event *event;
    int n = 0;

    for (event = device->events; event != NULL; event = event->next)
        n += event->kind == kind && strcmp(event->text, text) == 0;
    return n;
}

static int is(const bouncer_outcome *o, bouncer_result result, const char *reason, unsigned times, int repeated)
{
    int good = o->result == result && strcmp(o->reason, reason) == 0 && o->sent == times && o->may_be_repeated == repeated;

    if (!good)
        printf("  it is %d %s %u %d\n", o->result, o->reason, o->sent, o->may_be_repeated);
    return good;
}

static const char *id_of(const char *message)
{
    return strstr(message, "\"message_id\":\"") + 14;
}

static void notice_at(bouncer_linux *device, const char *id, const char *reason, int64_t server_time)
{
    char text[256];

    snprintf(text, sizeof text, "{\"message_id\":\"%.36s\",\"reason\":\"%s\",\"server_time\":%lld}", id, reason, (long long)server_time);
    noticed(device, text, strlen(text));
}

static void notice(bouncer_linux *device, const char *id, const char *reason)
{
    notice_at(device, id, reason, clock_now);
}

/* Lets all waits be over. */
static void let_pass(bouncer_linux *device)
{
    struct item *item;

    for (item = device->journal.first; item != NULL; item = item->next)
        item->until = 0;
    device->held_until = 0;
    send_what_is_due(device);
}

static void test_outbox(void)
{
    bouncer_linux_options options;
    bouncer_linux *device, *other;
    bouncer_delivery *delivery;
    bouncer_outcome o;
    char text[64];
    size_t i;

    clear_state();
    memset(&options, 0, sizeof options);
    options.max_messages = 20;
    options.max_bytes = 100;
    options.state = state;
    device = open_with(&options);
    CHECK(bouncer_linux_open(bundle, &options, &other, text, sizeof text) == BOUNCER_LOCKED && other == NULL);
    CHECK(publish(device, "{") == BOUNCER_PAYLOAD);
    CHECK(publish(device, "{\"a\":1,\"a\":2}") == BOUNCER_PAYLOAD);
    for (i = 0; i < 20; i++) {
        snprintf(text, sizeof text, "%u", (unsigned)i);
        CHECK(publish(device, text) == BOUNCER_OK);
    }
    CHECK(publish(device, "20") == BOUNCER_FULL);
    send_what_is_due(device);
    CHECK(sent_count == 16);
    for (i = 0; i < sent_count; i++) {
        snprintf(text, sizeof text, "\"payload\":%u,", (unsigned)i);
        CHECK(strstr(sent[i].message, text) != NULL && strcmp(sent[i].topic, "d/data") == 0);
    }
    send_what_is_due(device);
    CHECK(sent_count == 16);
    acknowledged(device, 3, 0x10);
    acknowledged(device, 3, 0);   /* a second time: nothing */
    acknowledged(device, 999, 0); /* unknown */
    o = outcome(device);
    CHECK(is(&o, BOUNCER_ACCEPTED, "", 1, 0) && o.delivery == 3);
    CHECK(outcome(device).result == 0);
    send_what_is_due(device);
    CHECK(sent_count == 17);
    CHECK(publish(device, "20") == BOUNCER_OK);
    bouncer_linux_close(device);

    /* After a restart: the same bytes, in order, then what was not sent. */
    device = open_with(&options);
    CHECK(device->journal.count == 20);
    send_what_is_due(device);
    CHECK(sent_count == 33);
    for (i = 0; i < 16; i++)
        CHECK(strcmp(sent[17 + i].message, sent[i < 2 ? i : i + 1].message) == 0);
    acknowledged(device, 18, 0);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_ACCEPTED, "", 2, 0) && o.delivery == 1);
    for (i = 19; i <= 33; i++)
        acknowledged(device, (int)i, 0x97);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_REFUSED, "mqtt 0x97", 2, 0));
    send_what_is_due(device);
    CHECK(sent_count == 37);
    for (i = 34; i <= 37; i++)
        acknowledged(device, (int)i, 0);
    CHECK(device->journal.count == 0 && device->journal.bytes == 0);
    CHECK(publish(device, "\"a text of 98 bytes ....................................................................... .....\"") == BOUNCER_OK);
    CHECK(publish(device, "1234567890") == BOUNCER_FULL);
    bouncer_linux_close(device);

    /* Numbers do not come twice, and a wait ends with the Device. */
    device = open_with(&options);
    CHECK(device->journal.count == 1);
    CHECK(bouncer_linux_publish(device, "1", 1, &delivery) == BOUNCER_OK && bouncer_delivery_number(delivery) == 23);
    CHECK(bouncer_delivery_wait(delivery, 0, &o) == BOUNCER_TIMEOUT);
    send_what_is_due(device);
    acknowledged(device, (int)sent_count, 0);
    CHECK(bouncer_delivery_wait(delivery, 0, &o) == BOUNCER_OK && is(&o, BOUNCER_ACCEPTED, "", 1, 0));
    bouncer_delivery_free(delivery);
    CHECK(bouncer_linux_publish(device, "1", 1, &delivery) == BOUNCER_OK);
    bouncer_linux_close(device);
    CHECK(bouncer_delivery_wait(delivery, 0, &o) == BOUNCER_CLOSED);
    bouncer_delivery_free(delivery);
}

static void test_too_large(void)
{
    bouncer_linux *device;
    char *payload = malloc(65536);
    size_t fits;

    clear_state();
    device = open_device();
    memset(payload, 'x', 65536);
    payload[0] = '"';
    for (fits = 65536; fits > 60000; fits--) {
        payload[fits - 1] = '"';
        if (bouncer_linux_publish(device, payload, fits, NULL) == BOUNCER_OK)
            break;
        CHECK(bouncer_linux_publish(device, payload, fits, NULL) == BOUNCER_TOO_LARGE);
        payload[fits - 1] = 'x';
    }
    send_what_is_due(device);
    CHECK(sent_count == 1 && strlen(sent[0].message) == 65536);
    bouncer_linux_close(device);
    free(payload);
}

/* The broker takes no packet so large: it is refused, and the next is sent. */
static void test_too_large_for_the_broker(void)
{
    bouncer_linux *device;
    bouncer_outcome o;
    char payload[1000];

    clear_state();
    device = open_device();
    memset(payload, '1', sizeof payload);
    largest_packet = 1000;
    CHECK(bouncer_linux_publish(device, payload, sizeof payload, NULL) == BOUNCER_OK && publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    largest_packet = SIZE_MAX;
    CHECK(sent_count == 1 && device->journal.count == 1);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_REFUSED, "mqtt 0x95", 0, 0));
    bouncer_linux_close(device);
}

static void test_outcomes(void)
{
    static const char *const clocks[] = {"stale", "future"}, *const later[] = {"rate_limited", "overloaded", "internal"};
    bouncer_linux_options options;
    bouncer_linux *device;
    bouncer_outcome o;
    size_t i, n;

    memset(&options, 0, sizeof options);
    clear_state();
    device = open_device();

    /* Any other reason; the notice before and after the acknowledgement. */
    CHECK(publish(device, "1") == BOUNCER_OK && publish(device, "2") == BOUNCER_OK);
    send_what_is_due(device);
    notice(device, id_of(sent[0].message), "bad_signature");
    notice(device, "00000000-0000-4000-8000-000000000000", "stale"); /* another's */
    CHECK(device->offset == 0 && outcome(device).result == 0);
    acknowledged(device, 1, 0x87);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_REFUSED, "bad_signature", 1, 0) && strncmp(o.message_id, id_of(sent[0].message), 36) == 0);
    acknowledged(device, 2, 0x87);
    send_what_is_due(device);
    CHECK(outcome(device).result == 0);
    notice(device, id_of(sent[1].message), "unregistered");
    o = outcome(device);
    CHECK(is(&o, BOUNCER_REFUSED, "unregistered", 1, 0));

    /* The clock: signed again, and refused after the third time. */
    for (i = 0; i < 2; i++) {
        forget_sent();
        device->offset = 0;
        CHECK(publish(device, "1") == BOUNCER_OK);
        for (n = 0; n < 3; n++) {
            send_what_is_due(device);
            CHECK(sent_count == n + 1);
            acknowledged(device, (int)sent_count, 0x87);
            notice_at(device, id_of(sent[n].message), clocks[i], clock_now + 1000);
            CHECK(device->offset == 1000);
        }
        CHECK(strncmp(id_of(sent[0].message), id_of(sent[1].message), 36) != 0);
        CHECK(strstr(sent[0].message, "\"timestamp\":1727712000,") != NULL && strstr(sent[1].message, "\"timestamp\":1727713000,") != NULL);
        o = outcome(device);
        CHECK(is(&o, BOUNCER_REFUSED, clocks[i], 3, 0));
    }
    bouncer_linux_close(device);
    device = open_device();
    CHECK(device->offset == 1000);
    device->offset = 0;

    /* stale for bytes that were sent before: they may be repeated. */
    forget_sent();
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    connection_ended(device);
    send_what_is_due(device);
    CHECK(sent_count == 2 && strcmp(sent[0].message, sent[1].message) == 0);
    acknowledged(device, 2, 0x87);
    notice(device, id_of(sent[1].message), "stale");
    send_what_is_due(device);
    acknowledged(device, 3, 0);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_ACCEPTED, "", 3, 1));

    /* replay: accepted if it was sent before. */
    forget_sent();
    CHECK(publish(device, "1") == BOUNCER_OK && publish(device, "2") == BOUNCER_OK);
    send_what_is_due(device);
    acknowledged(device, 2, 0x87);
    notice(device, id_of(sent[1].message), "replay");
    o = outcome(device);
    CHECK(is(&o, BOUNCER_REFUSED, "replay", 1, 0));
    connection_ended(device);
    send_what_is_due(device);
    acknowledged(device, 3, 0x87);
    notice(device, id_of(sent[2].message), "replay");
    o = outcome(device);
    CHECK(is(&o, BOUNCER_ACCEPTED, "", 2, 0));

    /* For the time being: the same message, and nothing else meanwhile. */
    for (i = 0; i < 3; i++) {
        forget_sent();
        CHECK(publish(device, "1") == BOUNCER_OK);
        send_what_is_due(device);
        CHECK(publish(device, "2") == BOUNCER_OK);
        for (n = 0; n < 8; n++) {
            int64_t wait;
            acknowledged(device, (int)sent_count, 0x87);
            notice(device, id_of(sent[sent_count - 1].message), later[i]);
            wait = device->held_until - monotonic_ms();
            CHECK(wait <= (n < 6 ? 1000 << n : 60000) && wait > (n < 6 ? 1000 << n : 60000) - 500);
            send_what_is_due(device);
            CHECK(sent_count == n + 1);
            device->held_until = 0;
            send_what_is_due(device);
            CHECK(sent_count == n + 2 && strcmp(sent[n + 1].message, sent[0].message) == 0);
        }
        acknowledged(device, 9, 0);
        o = outcome(device);
        CHECK(is(&o, BOUNCER_ACCEPTED, "", 9, 0));
        send_what_is_due(device);
        CHECK(sent_count == 10);
        acknowledged(device, 10, 0);
        (void)outcome(device);
    }

    /* Too old meanwhile: signed again, and nothing is repeated, for each copy was refused. */
    forget_sent();
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    acknowledged(device, 1, 0x87);
    notice(device, id_of(sent[0].message), "overloaded");
    clock_now += 271;
    let_pass(device);
    CHECK(sent_count == 2 && strcmp(sent[0].message, sent[1].message) != 0);
    acknowledged(device, 2, 0);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_ACCEPTED, "", 2, 0));

    /* No notice: signed again, refused after the third time. */
    forget_sent();
    CHECK(publish(device, "1") == BOUNCER_OK);
    for (n = 0; n < 3; n++) {
        let_pass(device);
        CHECK(sent_count == n + 1);
        acknowledged(device, (int)sent_count, 0x87);
        send_what_is_due(device);
        CHECK(device->journal.first->state == ITEM_REFUSED && device->journal.first->until > monotonic_ms() + 1500);
        device->journal.first->until = 0;
        send_what_is_due(device);
        CHECK(n == 2 || (sent_count == n + 1 && device->journal.first->until > monotonic_ms() + 1500));
    }
    CHECK(strcmp(sent[0].message, sent[1].message) != 0 && strcmp(sent[1].message, sent[2].message) != 0);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_REFUSED, "unspecified", 3, 0));

    /* The same bytes if they had been sent before. */
    forget_sent();
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    connection_ended(device);
    send_what_is_due(device);
    acknowledged(device, 2, 0x87);
    let_pass(device);
    let_pass(device);
    CHECK(sent_count == 3 && strcmp(sent[0].message, sent[2].message) == 0);
    acknowledged(device, 3, 0);
    (void)outcome(device);

    /* Without an acknowledgement, and too old. */
    forget_sent();
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    connection_ended(device);
    clock_now += 270;
    send_what_is_due(device);
    CHECK(sent_count == 2 && strcmp(sent[0].message, sent[1].message) == 0);
    connection_ended(device);
    clock_now += 1;
    send_what_is_due(device);
    CHECK(sent_count == 3 && strcmp(sent[0].message, sent[2].message) != 0);
    bouncer_linux_close(device); /* that it may be repeated is kept over a restart */
    device = open_device();
    send_what_is_due(device);
    CHECK(sent_count == 4 && strcmp(sent[3].message, sent[2].message) == 0);
    acknowledged(device, 4, 0);
    o = outcome(device);
    CHECK(is(&o, BOUNCER_ACCEPTED, "", 4, 1));
    bouncer_linux_close(device);

    /* The setting. */
    forget_sent();
    options.unknown_if_repeated = 1;
    device = open_with(&options);
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    connection_ended(device);
    clock_now += 271;
    send_what_is_due(device);
    o = outcome(device);
    CHECK(sent_count == 1 && is(&o, BOUNCER_UNKNOWN, "", 1, 0));
    bouncer_linux_close(device);
}

static void copy_state(const char *name, char **data, size_t *length)
{
    int at = open(state, O_RDONLY | O_DIRECTORY);

    *data = file_read(at, name, 1 << 24, length);
    close(at);
    if (*data == NULL)
        abort();
}

/* The outbox cut off at each place, and with each byte changed: what is before the damage is there. */
static void test_damage(void)
{
    bouncer_linux *device;
    char *data, *changed;
    size_t length, n, last = 0;

    clear_state();
    device = open_device();
    CHECK(publish(device, "{\"first\":1}") == BOUNCER_OK);
    send_what_is_due(device);
    CHECK(publish(device, "{\"second\":2}") == BOUNCER_OK && publish(device, "{\"third\":3}") == BOUNCER_OK);
    bouncer_linux_close(device);
    copy_state("outbox", &data, &length);
    changed = malloc(length);
    for (n = 0; n <= length; n++) {
        size_t count;
        write_file(state, "outbox", data, n);
        device = open_device();
        count = device->journal.count;
        CHECK(count >= last && count <= 3);
        last = count;
        CHECK(reported(device, EVENT_ERROR, "the end of the outbox was damaged; what was written last is lost") == (device->journal.size != n));
        CHECK(count == 0 || memcmp(device->journal.first->payload, "{\"first\":1}", 11) == 0);
        CHECK(count == 3 || publish(device, "4") == BOUNCER_OK);
        bouncer_linux_close(device);
        device = open_device();
        CHECK(device->journal.count == (count == 3 ? 3 : count + 1));
        bouncer_linux_close(device);
    }
    CHECK(last == 3);
    for (n = 0; n < length; n++) {
        memcpy(changed, data, length);
        changed[n] = (char)(changed[n] ^ 0x20);
        write_file(state, "outbox", changed, length);
        device = open_device();
        CHECK(device->journal.count < 3 || device->journal.first->message == NULL || device->journal.size == length);
        CHECK(device->events != NULL); /* it was noticed */
        bouncer_linux_close(device);
    }
    free(data);
    free(changed);
}

/* Most of the file is done with: it is written again, and does not grow. */
static void test_rewrite(void)
{
    bouncer_linux *device;
    char *payload = malloc(40000);
    struct stat about;
    char path[512];
    size_t n;
    off_t largest = 0;
    bouncer_outcome o;

    clear_state();
    device = open_device();
    memset(payload, 'x', 40000);
    payload[0] = payload[39999] = '"';
    CHECK(publish(device, "\"it stays\"") == BOUNCER_OK);
    send_what_is_due(device);
    connection_ended(device);
    send_what_is_due(device);
    snprintf(path, sizeof path, "%s/outbox", state);
    for (n = 0; n < 100; n++) {
        CHECK(bouncer_linux_publish(device, payload, 40000, NULL) == BOUNCER_OK);
        send_what_is_due(device);
        acknowledged(device, (int)sent_count, 0);
        CHECK(outcome(device).delivery == n + 2);
        if (stat(path, &about) != 0 || about.st_size > largest)
            largest = about.st_size;
    }
    CHECK(largest > 900000 && largest < (1 << 20) + 300000);
    CHECK(device->journal.count == 1);
    bouncer_linux_close(device);
    device = open_device();
    CHECK(device->journal.count == 1 && device->journal.next == 102);
    CHECK(device->journal.first->copies == 2 && device->journal.first->sent == 2);
    bouncer_linux_close(device);

    /* What is to be signed again may still be repeated when the file was written again. */
    clear_state();
    device = open_device();
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    connection_ended(device);
    send_what_is_due(device);
    acknowledged(device, 2, 0x87);
    notice(device, id_of(sent[1].message), "stale");
    CHECK(device->journal.first->message == NULL && device->journal.first->may_be_repeated);
    for (n = 0; n < 100; n++) {
        struct item *item = journal_add(&device->journal, ITEM_DATA, payload, 40000);
        CHECK(item != NULL && journal_done(&device->journal, item) == 0);
    }
    CHECK(device->journal.live == 12 + 10 + 1 + 12 + 58);
    bouncer_linux_close(device);
    device = open_device();
    CHECK(device->journal.count == 1 && device->journal.first->message == NULL && device->journal.first->may_be_repeated);
    CHECK(device->journal.first->sent == 2 && device->journal.live == 12 + 10 + 1 + 12 + 58);
    send_what_is_due(device);
    acknowledged(device, 3, 0);
    o = outcome(device);
    CHECK(sent_count == 3 && is(&o, BOUNCER_ACCEPTED, "", 3, 1));
    CHECK(device->journal.live == 0);
    bouncer_linux_close(device);
    free(payload);
}

/* The disk does not take more: nothing is lost, and nothing is half there. */
static void test_disk_full(void)
{
    bouncer_linux *device;
    int full = open("/dev/full", O_RDWR), file;

    clear_state();
    device = open_device();
    CHECK(publish(device, "1") == BOUNCER_OK);
    file = device->journal.file;
    device->journal.file = full;
    CHECK(publish(device, "2") == BOUNCER_DISK);
    send_what_is_due(device);
    CHECK(sent_count == 0); /* what cannot be written down is not sent */
    device->journal.file = file;
    let_pass(device);
    CHECK(sent_count == 1);
    CHECK(publish(device, "3") == BOUNCER_OK);
    bouncer_linux_close(device);
    device = open_device();
    CHECK(device->journal.count == 2 && device->events == NULL);
    bouncer_linux_close(device);
    close(full);
}

/* Commands. */

static unsigned executed;
static bouncer_status give_status;
static const char *give_json, *give_text;

static bouncer_status on_command(void *context, const bouncer_command *command, bouncer_reply *reply)
{
    (void)context;
    (void)command;
    executed++;
    if (give_json != NULL)
        (void)bouncer_reply_json(reply, give_json, strlen(give_json));
    if (give_text != NULL)
        (void)bouncer_reply_text(reply, give_text);
    return give_status;
}

static char *make_command(unsigned n, int64_t expires, const char *key)
{
    static char message[512];
    char bytes[256], id[37], payload[64], hex[65];
    unsigned char mac[32];
    size_t i;

    snprintf(id, sizeof id, "01923456-789a-8bcd-8def-%012x", n);
    snprintf(payload, sizeof payload, "{\"command\":%u,\"expires\":%lld}", n, (long long)expires);
    snprintf(bytes, sizeof bytes, "sensor_001%d%s%s", 1, id, payload);
    HMAC(EVP_sha256(), key, (int)strlen(key), (const unsigned char *)bytes, strlen(bytes), mac, NULL);
    for (i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", mac[i]);
    snprintf(message, sizeof message, "{\"device_id\":\"sensor_001\",\"timestamp\":1,\"message_id\":\"%s\",\"payload\":%s,\"signature\":\"%s\"}", id,
             payload, hex);
    return message;
}

/* Gives it a message of the command topic and waits until it was handled. */
static void receive(bouncer_linux *device, const char *message)
{
    int64_t end = monotonic_ms() + 10000;
    int idle = 0;

    pthread_mutex_lock(&device->lock);
    command_received(device, message, strlen(message));
    pthread_mutex_unlock(&device->lock);
    while (!idle && monotonic_ms() < end) {
        struct event *event;
        usleep(1000);
        pthread_mutex_lock(&device->lock);
        idle = device->queue_count == 0 && (device->journal.last != NULL || device->events != NULL);
        for (event = device->events; event != NULL; event = event->next)
            idle = idle || event->kind == EVENT_COMMAND_REFUSED;
        pthread_mutex_unlock(&device->lock);
    }
    CHECK(idle);
}

static void drain(bouncer_linux *device)
{
    pthread_mutex_lock(&device->lock);
    send_what_is_due(device);
    while (device->journal.first != NULL)
        acknowledged(device, device->journal.first->mid, 0);
    while (device->events != NULL) {
        struct event *event = device->events;
        device->events = event->next;
        free(event);
    }
    device->events_end = &device->events;
    device->event_count = 0;
    device->event_bytes = 0;
    pthread_mutex_unlock(&device->lock);
}

static int has_answer(bouncer_linux *device, const char *rest)
{
    const char *message;

    pthread_mutex_lock(&device->lock);
    send_what_is_due(device);
    pthread_mutex_unlock(&device->lock);
    message = sent_count == 0 ? "" : sent[sent_count - 1].message;
    if (sent_count > 0 && strcmp(sent[sent_count - 1].topic, "d/command/result") == 0 && strstr(message, rest) != NULL)
        return 1;
    printf("  the last message: %s\n", message);
    return 0;
}

static void test_commands(void)
{
    static const char failed[] = "\"status\":\"failed\",\"result\":", bad_utf8[] = "caf\xe9 \"x\"\n";
    bouncer_linux_options options;
    bouncer_linux *device;
    bouncer_memory_entry gone;
    struct stat about;
    char *data, *long_json, path[600], message[256];
    size_t length, before;

    clear_state();
    memset(&options, 0, sizeof options);
    options.on_command = on_command;
    options.commands = 2;
    device = open_with(&options);
    CHECK(bouncer_linux_start(device) == BOUNCER_OK);
    CHECK(bouncer_linux_start(device) == BOUNCER_CLOSED);

    receive(device, make_command(1, clock_now + 100, "another secret"));
    CHECK(reported(device, EVENT_COMMAND_REFUSED, "forged") == 1 && executed == 0);
    drain(device);
    receive(device, make_command(1, clock_now, secret));
    CHECK(reported(device, EVENT_COMMAND_REFUSED, "expired") == 1 && executed == 0);
    drain(device);

    give_status = BOUNCER_SUCCEEDED;
    give_json = "{\"n\":1}";
    receive(device, make_command(1, clock_now + 100, secret));
    CHECK(executed == 1 && has_answer(device, "{\"command_id\":\"01923456-789a-8bcd-8def-000000000001\",\"status\":\"succeeded\",\"result\":{\"n\":1}}"));
    snprintf(path, sizeof path, "%s/answers", state);
    CHECK(stat(path, &about) == 0 && synced_directory == about.st_ino);
    /* Its answer is under way: not a second one. */
    receive(device, make_command(1, clock_now + 100, secret));
    pthread_mutex_lock(&device->lock);
    CHECK(executed == 1 && device->journal.count == 1);
    pthread_mutex_unlock(&device->lock);
    drain(device);
    /* It was acknowledged, and the command comes again: the same answer. */
    receive(device, make_command(1, clock_now + 100, secret));
    CHECK(executed == 1 && reported(device, EVENT_COMMAND_REFUSED, "repeated") == 1 && has_answer(device, "\"result\":{\"n\":1}}"));
    drain(device);
    bouncer_linux_close(device);

    /* Over a restart. */
    device = open_with(&options);
    CHECK(bouncer_linux_start(device) == BOUNCER_OK);
    receive(device, make_command(1, clock_now + 100, secret));
    CHECK(executed == 1 && has_answer(device, "\"result\":{\"n\":1}}"));
    drain(device);

    /* What handlers give. */
    give_json = NULL;
    give_status = (bouncer_status)7;
    receive(device, make_command(2, clock_now + 200, secret));
    CHECK(executed == 2 && has_answer(device, "000002\",\"status\":\"failed\"}"));
    drain(device);
    give_status = BOUNCER_FAILED;
    give_text = bad_utf8;
    receive(device, make_command(3, clock_now + 300, secret));
    snprintf(message, sizeof message, "000003\",%s\"caf? \\\"x\\\"\\u000a\"}", failed);
    CHECK(executed == 3 && has_answer(device, message));
    drain(device);
    give_text = NULL;
    long_json = malloc(70001);
    memset(long_json, '1', 70000);
    long_json[70000] = '\0';
    give_json = long_json;
    give_status = BOUNCER_SUCCEEDED;
    receive(device, make_command(4, clock_now + 400, secret));
    snprintf(message, sizeof message, "000004\",%s\"too_large\"}", failed);
    CHECK(executed == 4 && has_answer(device, message));
    drain(device);
    give_json = "{";
    receive(device, make_command(5, clock_now + 500, secret));
    CHECK(executed == 5 && has_answer(device, "000005\",\"status\":\"succeeded\"}"));
    drain(device);

    /* The memory has room for two: 4 and 5. The answers of the others are removed, and they are not executed again. */
    CHECK(device->memory.count == 2 && device->memory.floor == clock_now + 300);
    snprintf(path, sizeof path, "%s/answers/01923456789a8bcd8def000000000001", state);
    CHECK(access(path, F_OK) != 0);
    snprintf(path, sizeof path, "%s/answers/01923456789a8bcd8def000000000005", state);
    CHECK(access(path, F_OK) == 0);
    receive(device, make_command(3, clock_now + 300, secret));
    CHECK(executed == 5 && reported(device, EVENT_COMMAND_REFUSED, "expired") == 1);
    drain(device);

    /* The process ended while it was executed: there is no answer. */
    CHECK(unlink(path) == 0);
    receive(device, make_command(5, clock_now + 500, secret));
    snprintf(message, sizeof message, "000005\",%s\"interrupted\"}", failed);
    CHECK(executed == 5 && has_answer(device, message));
    drain(device);

    /* What cannot be written down is not executed, and is as before. */
    pthread_mutex_lock(&device->lock);
    before = (size_t)device->directory;
    device->directory = -1;
    gone = device->memory.entries[0];
    pthread_mutex_unlock(&device->lock);
    receive(device, make_command(6, clock_now + 600, secret));
    pthread_mutex_lock(&device->lock);
    device->directory = (int)before;
    CHECK(executed == 5 && device->memory.count == 2 && memcmp(&gone, &device->memory.entries[0], sizeof gone) == 0);
    pthread_mutex_unlock(&device->lock);
    drain(device);
    receive(device, make_command(6, clock_now + 600, secret));
    CHECK(executed == 6);
    drain(device);
    bouncer_linux_close(device);

    /* A smaller memory raises the floor. No handler: rejected. */
    options.commands = 1;
    options.on_command = NULL;
    device = open_with(&options);
    CHECK(device->memory.count == 1 && device->memory.entries[0].expires == clock_now + 600 && device->memory.floor == clock_now + 500);
    CHECK(bouncer_linux_start(device) == BOUNCER_OK);
    receive(device, make_command(7, clock_now + 700, secret));
    CHECK(has_answer(device, "000007\",\"status\":\"rejected\"}"));
    bouncer_linux_close(device);

    /* A damaged memory is not taken for an empty one. */
    copy_state("commands", &data, &length);
    for (before = 0; before < length; before++) {
        bouncer_linux *none;
        data[before] = (char)(data[before] ^ 1);
        write_file(state, "commands", data, length);
        data[before] = (char)(data[before] ^ 1);
        options.state = state;
        CHECK(bouncer_linux_open(bundle, &options, &none, message, sizeof message) == BOUNCER_DISK && none == NULL);
        write_file(state, "commands", data, before);
        CHECK(bouncer_linux_open(bundle, &options, &none, message, sizeof message) == BOUNCER_DISK && none == NULL);
    }
    free(data);
    free(long_json);
}

static void test_bundles(void)
{
    static const char *const bad[] = {
        "\"algorithm\":\"HMAC-SHA256\"",
        "\"algorithm\":\"HMAC-SHA256\",\"secret\":\"missing\"",
        "\"algorithm\":\"HMAC-SHA256\",\"secret\":\"empty\"",
        "\"algorithm\":\"HMAC-SHA256\",\"secret\":1",
        "\"algorithm\":\"Ed25519\",\"secret\":\"secret\"",
        "\"algorithm\":\"Ed25519\",\"signing_key\":\"secret\"",
        "\"algorithm\":\"ECDSA P-256\",\"signing_key\":\"ed25519.pem\"",
        "\"algorithm\":\"Ed25519\",\"signing_key\":\"ed25519.pem\",\"command_keys\":\"secret\"",
        "\"algorithm\":\"Ed25519\",\"signing_key\":\"ed25519.pem\",\"command_keys\":\"broken.pem\"",
        "\"algorithm\":\"RSA\",\"secret\":\"secret\"",
        "\"secret\":\"secret\"",
    };
    static const char private_key[] = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHIK/LIVSg/DdBrN1IAHRlQSHlSwlymGNF9n2s6Rhlzg\n"
                                      "-----END PRIVATE KEY-----\n";
    static const char public_keys[] = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA6fb8fj1ZsF/RYgqIg2zhvkgybKpWIdEGXFFW8wPtQ+4=\n"
                                      "-----END PUBLIC KEY-----\n-----BEGIN PUBLIC KEY-----\n"
                                      "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMH7vkl8tlK5PpTONGkyKYEmGxMoA\n"
                                      "JOgd5BdhK3SayB8XRyQlMPMYJ6/MkbpugpkCQTaYBvkJ4e8g33ftAJ2UHg==\n-----END PUBLIC KEY-----\n";
    bouncer_linux_options options;
    bouncer_linux *device;
    char message[256];
    size_t i;

    clear_state();
    memset(&options, 0, sizeof options);
    options.state = state;
    write_file(bundle, "empty", "\n", 1);
    write_file(bundle, "ed25519.pem", private_key, strlen(private_key));
    write_file(bundle, "keys.pem", public_keys, strlen(public_keys));
    write_file(bundle, "broken.pem", public_keys, strlen(public_keys) - 30);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_bundle(bad[i]);
        message[0] = '\0';
        CHECK(bouncer_linux_open(bundle, &options, &device, message, sizeof message) == BOUNCER_BUNDLE && device == NULL);
        CHECK(message[0] != '\0' && strstr(message, secret) == NULL);
    }
    write_file(bundle, "device.json", "{", 1);
    CHECK(bouncer_linux_open(bundle, &options, &device, NULL, 0) == BOUNCER_BUNDLE);
    CHECK(bouncer_linux_open("/nonexistent", &options, &device, NULL, 0) == BOUNCER_BUNDLE);
    write_bundle("\"algorithm\":\"Ed25519\",\"signing_key\":\"ed25519.pem\",\"command_keys\":\"keys.pem\"");
    device = open_device();
    CHECK(device->bundle.device.key_count == 2 && device->bundle.keys[1].algorithm == BOUNCER_ECDSA_P256);
    CHECK(publish(device, "1") == BOUNCER_OK);
    send_what_is_due(device);
    CHECK(sent_count == 1 && strlen(strstr(sent[0].message, "\"signature\":\"")) == 13 + 128 + 2);
    CHECK(device->options.tolerance == 300);
    bouncer_linux_close(device);
    write_bundle("\"algorithm\":\"HMAC-SHA256\",\"secret\":\"secret\",\"tolerance\":60");
    device = open_device();
    CHECK(device->options.tolerance == 60);
    bouncer_linux_close(device);
    write_bundle("\"algorithm\":\"HMAC-SHA256\",\"secret\":\"secret\",\"tolerance\":\"60\"");
    CHECK(bouncer_linux_open(bundle, &options, &device, NULL, 0) == BOUNCER_BUNDLE);
    options.tolerance = 30;
    CHECK(bouncer_linux_open(bundle, &options, &device, NULL, 0) == BOUNCER_ARGUMENT);
}

int main(void)
{
    char command[600];

    if (mkdtemp(directory) == NULL)
        return 1;
    snprintf(bundle, sizeof bundle, "%s/bundle", directory);
    snprintf(state, sizeof state, "%s/state", directory);
    if (mkdir(bundle, 0700) != 0)
        return 1;
    write_file(bundle, "ca.crt", "", 0);
    write_file(bundle, "secret", "supersecretkey123\n", 18);
    write_bundle("\"algorithm\":\"HMAC-SHA256\",\"secret\":\"secret\"");
    test_outbox();
    test_too_large();
    test_too_large_for_the_broker();
    test_outcomes();
    test_damage();
    test_rewrite();
    test_disk_full();
    test_commands();
    test_bundles();
    forget_sent();
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    if (system(command) != 0)
        failures++;
    printf("the Device without a broker: %lu checks, %lu failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
