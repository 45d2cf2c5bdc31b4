/* The Device: opening, publishing, closing, and what is reported. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <mosquitto.h>

#include "internal.h"

const char *bouncer_linux_error_name(int error)
{
    switch (error) {
    case BOUNCER_FULL:
        return "full";
    case BOUNCER_DISK:
        return "disk";
    case BOUNCER_BUNDLE:
        return "bundle";
    case BOUNCER_LOCKED:
        return "locked";
    case BOUNCER_CLOSED:
        return "closed";
    case BOUNCER_MEMORY:
        return "memory";
    case BOUNCER_TIMEOUT:
        return "timeout";
    default:
        return bouncer_error_name((bouncer_error)error);
    }
}

const char *bouncer_result_name(bouncer_result result)
{
    return result == BOUNCER_ACCEPTED ? "accepted" : result == BOUNCER_REFUSED ? "refused" : "unknown";
}

int64_t monotonic_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t device_time(bouncer_linux *device)
{
    const bouncer_linux_options *o = &device->options;
    int64_t now = (o->now != NULL ? o->now(o->context) : (int64_t)time(NULL)) + device->offset;

    return now < 0 ? 0 : now > BOUNCER_MAX_TIME ? BOUNCER_MAX_TIME : now;
}

void wake_worker(bouncer_linux *device)
{
    uint64_t one = 1;

    (void)!write(device->wake, &one, sizeof one);
}

/* What is reported. */

static struct event *add_event(bouncer_linux *device, enum event_kind kind, const char *text, size_t length)
{
    struct event *event;

    if (kind != EVENT_OUTCOME && (device->event_count >= MAX_EVENTS || length > MAX_EVENT_BYTES - device->event_bytes))
        return NULL;
    event = calloc(1, sizeof *event + length);
    if (event == NULL)
        return NULL;
    event->kind = kind;
    event->length = length;
    if (length > 0)
        memcpy(event->text, text, length);
    *device->events_end = event;
    device->events_end = &event->next;
    device->event_count++;
    device->event_bytes += length;
    return event;
}

void report(bouncer_linux *device, enum event_kind kind, const char *text, size_t length)
{
    (void)add_event(device, kind, text, length);
}

void report_outcome(bouncer_linux *device, const bouncer_outcome *outcome)
{
    struct event *event = add_event(device, EVENT_OUTCOME, NULL, 0);

    if (event != NULL)
        event->outcome = *outcome;
}

void report_connection(bouncer_linux *device, int connected)
{
    struct event *event = add_event(device, EVENT_CONNECTION, NULL, 0);

    log_line(device, connected ? "connected" : "disconnected");
    if (event != NULL)
        event->connected = connected;
}

void report_error(bouncer_linux *device, const char *format, ...)
{
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    log_line(device, "%s", text);
    report(device, EVENT_ERROR, text, strlen(text));
}

void log_line(bouncer_linux *device, const char *format, ...)
{
    char text[512];
    va_list arguments;

    if (device->options.log == NULL)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    device->options.log(device->options.context, text);
}

/* Deliveries. */

static bouncer_delivery *delivery_new(void)
{
    bouncer_delivery *delivery = calloc(1, sizeof *delivery);
    pthread_condattr_t attributes;

    if (delivery == NULL)
        return NULL;
    pthread_mutex_init(&delivery->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&delivery->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    delivery->references = 1;
    delivery->state = -1;
    return delivery;
}

void bouncer_delivery_free(bouncer_delivery *delivery)
{
    int last;

    if (delivery == NULL)
        return;
    pthread_mutex_lock(&delivery->mutex);
    last = --delivery->references == 0;
    pthread_mutex_unlock(&delivery->mutex);
    if (!last)
        return;
    pthread_cond_destroy(&delivery->changed);
    pthread_mutex_destroy(&delivery->mutex);
    free(delivery);
}

/* Ends the wait, and gives up the outbox's reference. */
void delivery_end(bouncer_delivery *delivery, int state, const bouncer_outcome *outcome)
{
    pthread_mutex_lock(&delivery->mutex);
    delivery->state = state;
    if (outcome != NULL)
        delivery->outcome = *outcome;
    pthread_cond_broadcast(&delivery->changed);
    pthread_mutex_unlock(&delivery->mutex);
    bouncer_delivery_free(delivery);
}

uint64_t bouncer_delivery_number(const bouncer_delivery *delivery)
{
    return delivery->number;
}

int bouncer_delivery_wait(bouncer_delivery *delivery, int milliseconds, bouncer_outcome *outcome)
{
    struct timespec end;
    int state, late = 0;

    clock_gettime(CLOCK_MONOTONIC, &end);
    if (milliseconds >= 0) {
        end.tv_sec += milliseconds / 1000;
        end.tv_nsec += (long)(milliseconds % 1000) * 1000000;
        if (end.tv_nsec >= 1000000000) {
            end.tv_nsec -= 1000000000;
            end.tv_sec++;
        }
    }
    pthread_mutex_lock(&delivery->mutex);
    while (delivery->state < 0 && late != ETIMEDOUT)
        late = milliseconds < 0 ? pthread_cond_wait(&delivery->changed, &delivery->mutex)
                                : pthread_cond_timedwait(&delivery->changed, &delivery->mutex, &end);
    state = delivery->state;
    if (state == BOUNCER_OK && outcome != NULL)
        *outcome = delivery->outcome;
    pthread_mutex_unlock(&delivery->mutex);
    return state < 0 ? BOUNCER_TIMEOUT : state;
}

/* Publishing. */

static int no_hmac(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    (void)context;
    (void)secret;
    (void)bytes;
    memset(mac, 0, 32);
    return 0;
}

int check_payload(bouncer_linux *device, const char *payload, size_t length)
{
    bouncer_device check = device->bundle.device;
    bouncer_text text, secret = bouncer_string("unused");
    bouncer_crypto crypto;
    size_t limit = check.max_message != 0 ? check.max_message : BOUNCER_MAX_MESSAGE, written;
    char *out;
    int error;

    if (length > limit)
        return BOUNCER_TOO_LARGE;
    memset(&crypto, 0, sizeof crypto);
    crypto.hmac = no_hmac;
    /* The signature of a key has 64 digits more than that of a secret. */
    check.max_message = check.algorithm == BOUNCER_HMAC_SHA256 ? limit : limit > 64 ? limit - 64 : 1;
    check.algorithm = BOUNCER_HMAC_SHA256;
    check.secrets = &secret;
    check.secret_count = 1;
    check.crypto = &crypto;
    text.data = payload;
    text.length = length;
    out = malloc(length + BOUNCER_OVERHEAD);
    if (out == NULL)
        return BOUNCER_MEMORY;
    error = (int)bouncer_sign(&check, device_time(device), bouncer_string("00000000-0000-4000-8000-000000000000"), text, out,
                              length + BOUNCER_OVERHEAD, &written);
    free(out);
    return error;
}

int enqueue(bouncer_linux *device, enum item_kind kind, const char *payload, size_t length, bouncer_delivery *delivery)
{
    struct item *item;

    if (device->stopping && kind == ITEM_DATA)
        return BOUNCER_CLOSED;
    if (device->journal.count >= device->options.max_messages || length > device->options.max_bytes ||
        device->journal.bytes > device->options.max_bytes - length)
        return BOUNCER_FULL;
    item = journal_add(&device->journal, kind, payload, length);
    if (item == NULL) {
        report_error(device, "the outbox cannot be written: %s", strerror(errno));
        return errno == ENOMEM ? BOUNCER_MEMORY : BOUNCER_DISK;
    }
    if (delivery != NULL) {
        delivery->number = item->delivery;
        delivery->references++;
        item->waiting = delivery;
    }
    wake_worker(device);
    return BOUNCER_OK;
}

int bouncer_linux_publish(bouncer_linux *device, const char *payload, size_t length, bouncer_delivery **delivery)
{
    bouncer_delivery *made = NULL;
    int error;

    if (delivery != NULL)
        *delivery = NULL;
    if (device == NULL || payload == NULL)
        return BOUNCER_ARGUMENT;
    pthread_mutex_lock(&device->lock);
    error = check_payload(device, payload, length);
    if (error == BOUNCER_OK && delivery != NULL && (made = delivery_new()) == NULL)
        error = BOUNCER_MEMORY;
    if (error == BOUNCER_OK)
        error = enqueue(device, ITEM_DATA, payload, length, made);
    pthread_mutex_unlock(&device->lock);
    if (error != BOUNCER_OK)
        bouncer_delivery_free(made);
    else if (delivery != NULL)
        *delivery = made;
    return error;
}

/* Opening and closing. */

static int say(char *message, size_t size, int error, const char *what, const char *why)
{
    if (message != NULL && size > 0)
        snprintf(message, size, "%s: %s", what, why);
    return error;
}

static int read_clock(bouncer_linux *device)
{
    size_t length;
    char *text = file_read(device->directory, "clock", 64, &length), *end;
    long long offset;

    if (text == NULL)
        return errno == ENOENT ? 0 : -1;
    errno = 0;
    offset = strtoll(text, &end, 10);
    if (errno == 0 && end != text && *end == '\n' && offset >= -BOUNCER_MAX_TIME && offset <= BOUNCER_MAX_TIME)
        device->offset = (int64_t)offset; /* otherwise the gateway tells it again */
    free(text);
    return 0;
}

static int open_state(bouncer_linux *device, const char *path, char *message, size_t size)
{
    int damaged = 0;

    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return say(message, size, BOUNCER_DISK, path, strerror(errno));
    device->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (device->directory < 0)
        return say(message, size, BOUNCER_DISK, path, strerror(errno));
    device->lock_file = openat(device->directory, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (device->lock_file < 0)
        return say(message, size, BOUNCER_DISK, path, strerror(errno));
    if (flock(device->lock_file, LOCK_EX | LOCK_NB) != 0)
        return say(message, size, BOUNCER_LOCKED, path, errno == EWOULDBLOCK ? "another Device uses the state directory" : strerror(errno));
    if (journal_open(&device->journal, device->directory, &damaged) != 0)
        return say(message, size, BOUNCER_DISK, "outbox", strerror(errno));
    if (damaged)
        report_error(device, "the end of the outbox was damaged; what was written last is lost");
    if (read_clock(device) != 0)
        return say(message, size, BOUNCER_DISK, "clock", strerror(errno));
    if (commands_open(device) != 0)
        return say(message, size, BOUNCER_DISK, "commands", strerror(errno));
    return BOUNCER_OK;
}

static int set_options(bouncer_linux *device, const bouncer_linux_options *options)
{
    bouncer_linux_options *o = &device->options;

    if (options != NULL)
        *o = *options;
    if (o->max_messages == 0)
        o->max_messages = 10000;
    if (o->max_bytes == 0)
        o->max_bytes = (size_t)16 << 20;
    if (o->commands == 0)
        o->commands = 256;
    return (o->tolerance == 0 || o->tolerance > 30) && o->commands <= 65536 && o->max_message <= MAX_PACKET ? BOUNCER_OK : BOUNCER_ARGUMENT;
}

int bouncer_linux_open(const char *bundle, const bouncer_linux_options *options, bouncer_linux **opened, char *message, size_t size)
{
    bouncer_linux *device;
    char *path = NULL;
    int error;

    if (opened == NULL)
        return BOUNCER_ARGUMENT;
    *opened = NULL;
    if (bundle == NULL)
        return BOUNCER_ARGUMENT;
    device = calloc(1, sizeof *device);
    if (device == NULL)
        return BOUNCER_MEMORY;
    pthread_mutex_init(&device->lock, NULL);
    pthread_cond_init(&device->changed, NULL);
    device->directory = device->answers = device->lock_file = device->journal.file = -1;
    device->events_end = &device->events;
    device->window = WINDOW;
    device->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = device->wake < 0 || mosquitto_lib_init() != MOSQ_ERR_SUCCESS ? BOUNCER_MEMORY : BOUNCER_OK;
    if (error == BOUNCER_OK && (error = set_options(device, options)) != BOUNCER_OK)
        (void)say(message, size, error, "options", "a value is out of its range");
    if (error == BOUNCER_OK)
        error = bundle_read(&device->bundle, bundle, device->options.max_message, message, size);
    if (device->options.tolerance == 0) /* at 31, what is sent again is signed again once it is older than a second */
        device->options.tolerance = device->bundle.tolerance == 0 ? 300 : device->bundle.tolerance > 30 ? device->bundle.tolerance : 31;
    if (error == BOUNCER_OK) {
        path = device->options.state != NULL ? strdup(device->options.state) : path_of(bundle, "state");
        error = path == NULL ? BOUNCER_MEMORY : open_state(device, path, message, size);
    }
    free(path);
    if (error != BOUNCER_OK)
        bouncer_linux_close(device);
    else
        *opened = device;
    return error;
}

int bouncer_linux_start(bouncer_linux *device)
{
    int error = BOUNCER_OK;

    if (device == NULL)
        return BOUNCER_ARGUMENT;
    pthread_mutex_lock(&device->lock);
    if (device->started) {
        error = BOUNCER_CLOSED;
    } else if (pthread_create(&device->executor, NULL, commands_run, device) != 0) {
        error = BOUNCER_MEMORY;
    } else if (pthread_create(&device->worker, NULL, connection_run, device) != 0) {
        error = BOUNCER_MEMORY;
        device->stopping = 1;
        pthread_cond_broadcast(&device->changed);
        pthread_mutex_unlock(&device->lock);
        pthread_join(device->executor, NULL);
        pthread_mutex_lock(&device->lock);
    } else {
        device->started = 1;
    }
    pthread_mutex_unlock(&device->lock);
    return error;
}

void bouncer_linux_close(bouncer_linux *device)
{
    struct item *item;

    if (device == NULL)
        return;
    pthread_mutex_lock(&device->lock);
    device->stopping = 1;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->lock);
    if (device->wake >= 0)
        wake_worker(device);
    if (device->started) {
        /* The handler's answer is in the outbox then. */
        pthread_join(device->executor, NULL);
        pthread_join(device->worker, NULL);
    }
    for (item = device->journal.first; item != NULL; item = item->next) {
        if (item->waiting != NULL)
            delivery_end(item->waiting, BOUNCER_CLOSED, NULL);
        item->waiting = NULL;
    }
    commands_close(device);
    journal_close(&device->journal);
    bundle_free(&device->bundle);
    while (device->events != NULL) {
        struct event *event = device->events;
        device->events = event->next;
        free(event);
    }
    if (device->lock_file >= 0)
        close(device->lock_file);
    if (device->answers >= 0)
        close(device->answers);
    if (device->directory >= 0)
        close(device->directory);
    if (device->wake >= 0)
        close(device->wake);
    pthread_mutex_destroy(&device->lock);
    pthread_cond_destroy(&device->changed);
    /* No mosquitto_lib_cleanup: an attempt to connect that was left behind may still use the library. */
    free(device);
}
