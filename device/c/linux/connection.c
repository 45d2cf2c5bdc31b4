/*
 * One connection after the other, each with a new instance of libmosquitto: an instance would send again by itself what it has
 * sent before. connect(2) may block for minutes, so each attempt has a thread of its own, which is left behind if it takes too long.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <openssl/rand.h>

#include "internal.h"

#define KEEP_ALIVE 30         /* s */
#define SESSION_EXPIRY 3600   /* s */
#define CONNECT_TIMEOUT 20000 /* ms: until TCP is connected */
#define READY_TIMEOUT 30000   /* ms: until the subscriptions are acknowledged */
#define BACKOFF 1000          /* ms */
#define BACKOFF_MOST 60000

struct attempt {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int references, done, result, error;
    struct mosquitto *mosquitto;
    mosquitto_property *properties;
    char *host;
    int port;
};

static void attempt_free(struct attempt *a)
{
    if (a->mosquitto != NULL)
        mosquitto_destroy(a->mosquitto);
    mosquitto_property_free_all(&a->properties);
    free(a->host);
    pthread_mutex_destroy(&a->mutex);
    pthread_cond_destroy(&a->changed);
    free(a);
}

static void attempt_release(struct attempt *a)
{
    int last;

    pthread_mutex_lock(&a->mutex);
    last = --a->references == 0;
    pthread_mutex_unlock(&a->mutex);
    if (last)
        attempt_free(a);
}

static void *attempt_run(void *argument)
{
    struct attempt *a = argument;
    int result = mosquitto_connect_bind_v5(a->mosquitto, a->host, a->port, KEEP_ALIVE, NULL, a->properties), error = errno;

    pthread_mutex_lock(&a->mutex);
    a->result = result;
    a->error = error;
    a->done = 1;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
    attempt_release(a);
    return NULL;
}

/* Subscribed: messages may be sent. */
static void become_ready(bouncer_linux *device)
{
    if (!device->ready)
        report_connection(device, 1);
    device->ready = 1;
}

/* The callbacks are called from mosquitto_loop, without the lock. */

static void on_connect(struct mosquitto *mosquitto, void *context, int code, int flags, const mosquitto_property *properties)
{
    bouncer_linux *device = context;
    char *topics[3];
    int n = 0, result;

    (void)flags;
    (void)properties;
    if (code != 0) {
        pthread_mutex_lock(&device->lock);
        report_error(device, "the broker refuses the connection: %s", mosquitto_reason_string(code));
        pthread_mutex_unlock(&device->lock);
        return;
    }
    if (device->bundle.rejected != NULL)
        topics[n++] = device->bundle.rejected;
    if (device->bundle.command != NULL)
        topics[n++] = device->bundle.command;
    if (device->bundle.response != NULL)
        topics[n++] = device->bundle.response;
    result = n == 0 ? MOSQ_ERR_SUCCESS : mosquitto_subscribe_multiple(mosquitto, &device->subscription, n, topics, 1, 0, NULL);
    pthread_mutex_lock(&device->lock);
    device->connected = 1;
    if (n == 0)
        become_ready(device);
    if (result != MOSQ_ERR_SUCCESS) {
        report_error(device, "subscribing failed: %s", mosquitto_strerror(result));
        device->lost = 1;
    }
    pthread_mutex_unlock(&device->lock);
}

static void on_subscribe(struct mosquitto *mosquitto, void *context, int mid, int count, const int *codes, const mosquitto_property *properties)
{
    bouncer_linux *device = context;
    const char *topics[3];
    int n = 0, i;

    (void)mosquitto;
    (void)properties;
    if (device->bundle.rejected != NULL)
        topics[n++] = device->bundle.rejected;
    if (device->bundle.command != NULL)
        topics[n++] = device->bundle.command;
    if (device->bundle.response != NULL)
        topics[n++] = device->bundle.response;
    pthread_mutex_lock(&device->lock);
    if (mid == device->subscription) {
        for (i = 0; i < count && i < n; i++)
            if (codes[i] >= 0x80)
                report_error(device, "the subscription to %s was refused: 0x%02x", topics[i], (unsigned)codes[i]);
        become_ready(device);
    }
    pthread_mutex_unlock(&device->lock);
}

static void on_publish(struct mosquitto *mosquitto, void *context, int mid, int code, const mosquitto_property *properties)
{
    bouncer_linux *device = context;

    (void)mosquitto;
    (void)properties;
    pthread_mutex_lock(&device->lock);
    acknowledged(device, mid, code);
    pthread_mutex_unlock(&device->lock);
}

static void on_message(struct mosquitto *mosquitto, void *context, const struct mosquitto_message *message, const mosquitto_property *properties)
{
    bouncer_linux *device = context;
    const struct bundle *b = &device->bundle;
    const char *data = message->payload == NULL ? "" : message->payload;
    size_t length = message->payloadlen < 0 ? 0 : (size_t)message->payloadlen;

    (void)mosquitto;
    (void)properties;
    pthread_mutex_lock(&device->lock);
    if (b->rejected != NULL && strcmp(message->topic, b->rejected) == 0)
        noticed(device, data, length);
    else if (b->command != NULL && strcmp(message->topic, b->command) == 0)
        command_received(device, data, length);
    else if (b->response != NULL && strcmp(message->topic, b->response) == 0)
        report(device, EVENT_RESPONSE, data, length);
    pthread_mutex_unlock(&device->lock);
}

int connection_publish(bouncer_linux *device, const char *topic, const char *message, size_t length)
{
    int mid, result = mosquitto_publish_v5(device->mosquitto, &mid, topic, (int)length, message, 1, false, NULL);

    /* With MOSQ_ERR_NO_CONN and the like the message is in the instance, which is not used again. */
    if (result == MOSQ_ERR_SUCCESS)
        return mid;
    if (result == MOSQ_ERR_OVERSIZE_PACKET)
        return PUBLISH_TOO_LARGE;
    report_error(device, "publishing failed: %s", mosquitto_strerror(result));
    device->lost = 1;
    return -1;
}

/* Everything that a connection needs; NULL without memory or if a file of the bundle cannot be read. */
static struct attempt *attempt_new(bouncer_linux *device)
{
    const struct bundle *b = &device->bundle;
    struct attempt *a = calloc(1, sizeof *a);
    pthread_condattr_t attributes;
    int result;

    if (a == NULL)
        return NULL;
    a->references = 1;
    pthread_mutex_init(&a->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&a->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    a->host = strdup(b->host);
    a->port = b->port;
    a->mosquitto = mosquitto_new(b->id, false, device);
    result = a->mosquitto == NULL || a->host == NULL ? MOSQ_ERR_NOMEM : MOSQ_ERR_SUCCESS;
    if (result == MOSQ_ERR_SUCCESS)
        result = mosquitto_int_option(a->mosquitto, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
    if (result == MOSQ_ERR_SUCCESS)
        result = mosquitto_tls_set(a->mosquitto, b->ca, NULL, b->certificate, b->key, NULL);
    if (result == MOSQ_ERR_SUCCESS)
        result = mosquitto_tls_opts_set(a->mosquitto, 1, NULL, NULL);
    if (result == MOSQ_ERR_SUCCESS)
        result = mosquitto_property_add_int32(&a->properties, MQTT_PROP_SESSION_EXPIRY_INTERVAL, SESSION_EXPIRY);
    if (result == MOSQ_ERR_SUCCESS)
        result = mosquitto_property_add_int32(&a->properties, MQTT_PROP_MAXIMUM_PACKET_SIZE, MAX_PACKET);
    if (result != MOSQ_ERR_SUCCESS) {
        report_error(device, "connecting is not possible: %s", mosquitto_strerror(result));
        attempt_free(a);
        return NULL;
    }
    mosquitto_connect_v5_callback_set(a->mosquitto, on_connect);
    mosquitto_subscribe_v5_callback_set(a->mosquitto, on_subscribe);
    mosquitto_publish_v5_callback_set(a->mosquitto, on_publish);
    mosquitto_message_v5_callback_set(a->mosquitto, on_message);
    return a;
}

static void deadline_after(struct timespec *at, int64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, at);
    at->tv_sec += (time_t)(ms / 1000);
    at->tv_nsec += (long)(ms % 1000) * 1000000;
    if (at->tv_nsec >= 1000000000) {
        at->tv_nsec -= 1000000000;
        at->tv_sec++;
    }
}

static int is_stopping(bouncer_linux *device)
{
    int stopping;

    pthread_mutex_lock(&device->lock);
    stopping = device->stopping;
    pthread_mutex_unlock(&device->lock);
    return stopping;
}

/* Connects TCP. On success the attempt, with the instance, is the caller's alone. */
static int connect_tcp(bouncer_linux *device, struct attempt *a)
{
    pthread_t thread;
    int64_t end = monotonic_ms() + CONNECT_TIMEOUT;
    int done, result;
    char text[128];

    a->references++;
    if (pthread_create(&thread, NULL, attempt_run, a) != 0) {
        a->references--;
        return -1;
    }
    pthread_detach(thread);
    pthread_mutex_lock(&a->mutex);
    while (!a->done && monotonic_ms() < end) {
        struct timespec soon;
        deadline_after(&soon, 100);
        (void)pthread_cond_timedwait(&a->changed, &a->mutex, &soon);
        pthread_mutex_unlock(&a->mutex);
        if (is_stopping(device))
            end = 0;
        pthread_mutex_lock(&a->mutex);
    }
    done = a->done;
    result = a->result;
    if (done && result == MOSQ_ERR_ERRNO)
        snprintf(text, sizeof text, "%s", strerror(a->error));
    else
        snprintf(text, sizeof text, "%s", done ? mosquitto_strerror(result) : "no connection in time");
    pthread_mutex_unlock(&a->mutex);
    if (done && result == MOSQ_ERR_SUCCESS)
        return 0;
    pthread_mutex_lock(&device->lock);
    if (!device->stopping)
        report_error(device, "connecting to %s:%d failed: %s", device->bundle.host, device->bundle.port, text);
    pthread_mutex_unlock(&device->lock);
    return -1;
}

static void dispatch(bouncer_linux *device);

/* Waits for the socket, or until there is something to do. */
static void wait_for(bouncer_linux *device, int socket, int writing, int64_t due)
{
    struct pollfd files[2];
    int64_t now = monotonic_ms();
    uint64_t count;

    files[0].fd = device->wake;
    files[0].events = POLLIN;
    files[1].fd = socket;
    files[1].events = (short)(POLLIN | (writing ? POLLOUT : 0));
    if (poll(files, socket >= 0 ? 2 : 1, (int)(due > now ? (due - now < 1000 ? due - now : 1000) : 0)) > 0 && (files[0].revents & POLLIN) != 0)
        (void)!read(device->wake, &count, sizeof count);
}

/* Runs one connection to its end; whether it became ready. */
static int run_connection(bouncer_linux *device, struct mosquitto *mosquitto)
{
    int64_t started = monotonic_ms(), due;
    int result, was_ready = 0, stopping = 0, connected;

    do {
        int socket = mosquitto_socket(mosquitto), writing;
        pthread_mutex_lock(&device->lock);
        due = next_due(device, monotonic_ms());
        connected = device->connected;
        pthread_mutex_unlock(&device->lock);
        writing = connected && mosquitto_want_write(mosquitto);
        if (!connected && due > monotonic_ms() + 50)
            due = monotonic_ms() + 50; /* the handshake of TLS may want to write */
        wait_for(device, socket, writing, due);
        result = mosquitto_loop(mosquitto, 0, 1);
        pthread_mutex_lock(&device->lock);
        if (result != MOSQ_ERR_SUCCESS) {
            if (!device->lost && !device->stopping)
                report_error(device, "the connection ended: %s", mosquitto_strerror(result));
            device->lost = 1;
        }
        if (!device->ready && monotonic_ms() - started > READY_TIMEOUT) {
            report_error(device, "the broker does not answer");
            device->lost = 1;
        }
        send_what_is_due(device);
        was_ready = was_ready || device->ready;
        stopping = device->stopping;
        result = device->lost;
        pthread_mutex_unlock(&device->lock);
        dispatch(device);
    } while (!stopping && !result);
    if (stopping && !result) {
        (void)mosquitto_disconnect_v5(mosquitto, 0, NULL);
        (void)mosquitto_loop(mosquitto, 0, 1);
    }
    return was_ready;
}

/* Waits before the next connection; events are reported meanwhile. */
static void pause_for(bouncer_linux *device, int64_t ms)
{
    int64_t end = monotonic_ms() + ms;

    while (monotonic_ms() < end && !is_stopping(device)) {
        pthread_mutex_lock(&device->lock);
        send_what_is_due(device); /* only the waits of notices end */
        pthread_mutex_unlock(&device->lock);
        dispatch(device);
        wait_for(device, -1, 0, end);
    }
}

void *connection_run(void *argument)
{
    bouncer_linux *device = argument;
    int64_t backoff = BACKOFF;

    while (!is_stopping(device)) {
        struct attempt *a;
        int was_ready = 0;
        uint32_t random = 0;

        pthread_mutex_lock(&device->lock);
        device->connected = device->ready = device->lost = 0;
        a = attempt_new(device);
        device->mosquitto = a == NULL ? NULL : a->mosquitto;
        pthread_mutex_unlock(&device->lock);
        if (a != NULL) {
            if (connect_tcp(device, a) == 0)
                was_ready = run_connection(device, a->mosquitto);
            pthread_mutex_lock(&device->lock);
            device->mosquitto = NULL;
            if (device->ready)
                report_connection(device, 0);
            device->connected = device->ready = 0;
            connection_ended(device);
            pthread_mutex_unlock(&device->lock);
            attempt_release(a);
        }
        if (was_ready)
            backoff = BACKOFF;
        (void)RAND_bytes((unsigned char *)&random, sizeof random);
        dispatch(device);
        pause_for(device, backoff - backoff * (int64_t)(random & 0xffff) / 0x20000);
        backoff = backoff * 2 < BACKOFF_MOST ? backoff * 2 : BACKOFF_MOST;
    }
    dispatch(device);
    return NULL;
}

/* Gives the events to the callbacks, without the lock. */
static void dispatch(bouncer_linux *device)
{
    const bouncer_linux_options *o = &device->options;

    for (;;) {
        struct event *event;
        pthread_mutex_lock(&device->lock);
        event = device->events;
        if (event != NULL) {
            device->events = event->next;
            if (device->events == NULL)
                device->events_end = &device->events;
            device->event_count--;
            device->event_bytes -= event->length;
        }
        pthread_mutex_unlock(&device->lock);
        if (event == NULL)
            return;
        if (event->kind == EVENT_OUTCOME && o->on_outcome != NULL)
            o->on_outcome(o->context, &event->outcome);
        else if (event->kind == EVENT_CONNECTION && o->on_connection != NULL)
            o->on_connection(o->context, event->connected);
        else if (event->kind == EVENT_COMMAND_REFUSED && o->on_command_refused != NULL)
            o->on_command_refused(o->context, event->text);
        else if (event->kind == EVENT_RESPONSE && o->on_response != NULL)
            o->on_response(o->context, event->text, event->length);
        else if (event->kind == EVENT_ERROR && o->on_error != NULL)
            o->on_error(o->context, event->text);
        free(event);
    }
}
