/*
 * Each command once. "commands" has the memory, and "answers" a file for each answer that may have to be sent again. A command
 * goes through these steps, each on the disk before the next begins: it is in the memory; it is executed; its answer is in
 * answers; its answer is in the outbox.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define NAME "commands"
#define DIRECTORY "answers"
#define MAGIC "bouncer commands 1\n"
#define MAGIC_LENGTH (sizeof MAGIC - 1)
#define ENTRY 24
#define SUM 8
#define MAX_COMMANDS 65536

struct bouncer_reply {
    char *json;
    size_t length;
};

static void put(uint8_t *at, uint64_t value)
{
    int i;

    for (i = 0; i < 8; i++, value >>= 8)
        at[i] = (uint8_t)value;
}

static uint64_t get(const uint8_t *at)
{
    uint64_t value = 0;
    int i;

    for (i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static int checksum(const uint8_t *data, size_t length, uint8_t sum[EVP_MAX_MD_SIZE])
{
    return EVP_Digest(data, length, sum, NULL, EVP_sha256(), NULL) == 1 ? 0 : -1;
}

/* magic, floor, count, entries, checksum */
static int save(bouncer_linux *device)
{
    const bouncer_memory *m = &device->memory;
    size_t length = MAGIC_LENGTH + 16 + m->count * ENTRY + SUM, i;
    uint8_t *data = malloc(length), *at, sum[EVP_MAX_MD_SIZE];
    int result;

    if (data == NULL)
        return -1;
    memcpy(data, MAGIC, MAGIC_LENGTH);
    at = data + MAGIC_LENGTH;
    put(at, (uint64_t)m->floor);
    put(at + 8, m->count);
    at += 16;
    for (i = 0; i < m->count; i++, at += ENTRY) {
        memcpy(at, m->entries[i].id, 16);
        put(at + 16, (uint64_t)m->entries[i].expires);
    }
    result = checksum(data, length - SUM, sum);
    if (result == 0) {
        memcpy(at, sum, SUM);
        result = file_replace(device->directory, NAME, data, length);
    }
    free(data);
    return result;
}

/* Reads the memory. The file is replaced as a whole, so a damaged one is not what a crash leaves: no command is safe then. */
static int load(bouncer_linux *device)
{
    bouncer_memory *m = &device->memory;
    size_t length = 0, capacity = device->options.commands, count, i;
    uint8_t *data, *at, sum[EVP_MAX_MD_SIZE];
    int result = -1;

    m->entries = calloc(capacity, sizeof *m->entries);
    if (m->entries == NULL)
        return -1;
    m->capacity = capacity;
    data = (uint8_t *)file_read(device->directory, NAME, MAGIC_LENGTH + 16 + MAX_COMMANDS * ENTRY + SUM, &length);
    if (data == NULL)
        return errno == ENOENT ? 0 : -1;
    if (length >= MAGIC_LENGTH + 16 + SUM && memcmp(data, MAGIC, MAGIC_LENGTH) == 0 && checksum(data, length - SUM, sum) == 0 &&
        memcmp(data + length - SUM, sum, SUM) == 0) {
        at = data + MAGIC_LENGTH;
        m->floor = (int64_t)get(at);
        count = get(at + 8);
        at += 16;
        if (count <= MAX_COMMANDS && m->floor >= 0 && length == MAGIC_LENGTH + 16 + count * ENTRY + SUM) {
            result = 0;
            /* In a smaller memory than before, those without room raise the floor. */
            for (i = 0; i < count; i++, at += ENTRY) {
                int64_t expires = (int64_t)get(at + 16);
                if (m->count < capacity) {
                    memcpy(m->entries[m->count].id, at, 16);
                    m->entries[m->count++].expires = expires;
                } else {
                    size_t k, lowest = 0;
                    int64_t gone = expires;
                    for (k = 1; k < m->count; k++)
                        if (m->entries[k].expires < m->entries[lowest].expires)
                            lowest = k;
                    if (m->entries[lowest].expires < expires) {
                        gone = m->entries[lowest].expires;
                        memcpy(m->entries[lowest].id, at, 16);
                        m->entries[lowest].expires = expires;
                    }
                    if (gone > m->floor)
                        m->floor = gone;
                }
            }
        }
    }
    free(data);
    if (result != 0)
        errno = EBADMSG;
    return result;
}

/* The name of an answer's file: the id's 32 hexadecimal digits. */
static void answer_name(const uint8_t id[16], char name[33])
{
    char *at = name;
    int i;

    for (i = 0; i < 16; i++)
        at += snprintf(at, 3, "%02x", id[i]);
}

static int is_kept(const bouncer_memory *memory, const uint8_t id[16])
{
    size_t i;

    for (i = 0; i < memory->count; i++)
        if (memcmp(memory->entries[i].id, id, 16) == 0)
            return 1;
    return 0;
}

/* Removes the answers of commands that the memory does not have. */
static void clean(bouncer_linux *device, int directory)
{
    DIR *list = fdopendir(directory);
    struct dirent *entry;

    if (list == NULL) {
        close(directory);
        return;
    }
    while ((entry = readdir(list)) != NULL) {
        uint8_t id[16];
        unsigned byte;
        size_t i;
        for (i = 0; i < 16 && sscanf(entry->d_name + 2 * i, "%2x", &byte) == 1; i++)
            id[i] = (uint8_t)byte;
        if (entry->d_name[0] != '.' && (strlen(entry->d_name) != 32 || i < 16 || !is_kept(&device->memory, id)))
            (void)unlinkat(dirfd(list), entry->d_name, 0);
    }
    closedir(list);
}

int commands_open(bouncer_linux *device)
{
    int directory;

    device->queue_end = &device->queue;
    if (load(device) != 0)
        return -1;
    if (mkdirat(device->directory, DIRECTORY, 0700) != 0 && errno != EEXIST)
        return -1;
    device->answers = openat(device->directory, DIRECTORY, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (device->answers < 0 || fsync(device->directory) != 0)
        return -1;
    directory = fcntl(device->answers, F_DUPFD_CLOEXEC, 0);
    if (directory < 0)
        return -1;
    clean(device, directory);
    return 0;
}

void commands_close(bouncer_linux *device)
{
    while (device->queue != NULL) {
        struct queued_command *q = device->queue;
        device->queue = q->next;
        free(q);
    }
    free(device->memory.entries);
    device->memory.entries = NULL;
}

void command_received(bouncer_linux *device, const char *message, size_t length)
{
    bouncer_command command;
    bouncer_error error = bouncer_verify_command(&device->bundle.device, message, length, device_time(device), &command);
    struct queued_command *q;

    if (error != BOUNCER_OK) {
        log_line(device, "a command is refused: %s", bouncer_error_name(error));
        report(device, EVENT_COMMAND_REFUSED, bouncer_error_name(error), strlen(bouncer_error_name(error)));
        return;
    }
    q = device->queue_count < MAX_QUEUE ? malloc(sizeof *q + length) : NULL;
    if (q == NULL) {
        /* It is not in the memory, so it can come again. */
        report_error(device, "too many commands wait; one is dropped");
        return;
    }
    q->next = NULL;
    q->length = length;
    memcpy(q->message, message, length);
    *device->queue_end = q;
    device->queue_end = &q->next;
    device->queue_count++;
    pthread_cond_broadcast(&device->changed);
}

int bouncer_reply_json(bouncer_reply *reply, const char *json, size_t length)
{
    bouncer_device device;
    bouncer_text result;
    char *out = malloc(length + BOUNCER_ANSWER_OVERHEAD), *copy = malloc(length + 1);
    size_t written;
    int error = BOUNCER_MEMORY;

    memset(&device, 0, sizeof device);
    device.max_message = SIZE_MAX;
    result.data = json;
    result.length = length;
    if (out != NULL && copy != NULL) {
        error = (int)bouncer_answer(&device, bouncer_string("00000000-0000-8000-8000-000000000000"), BOUNCER_SUCCEEDED, result, out,
                                    length + BOUNCER_ANSWER_OVERHEAD, &written);
        if (error == BOUNCER_OK) {
            memcpy(copy, json, length);
            free(reply->json);
            reply->json = copy;
            reply->length = length;
            copy = NULL;
        }
    }
    free(out);
    free(copy);
    return error;
}

/* Writes a text as a string of JSON; plain leaves out what is above U+007F. Returns the length. */
static size_t quote(const char *text, char *out, int plain)
{
    char *at = out;

    *at++ = '"';
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20) {
            at += snprintf(at, 7, "\\u%04x", c);
            continue;
        }
        if (c == '"' || c == '\\')
            *at++ = '\\';
        *at++ = plain && c >= 0x80 ? '?' : *text;
    }
    *at++ = '"';
    return (size_t)(at - out);
}

int bouncer_reply_text(bouncer_reply *reply, const char *text)
{
    char *out = malloc(strlen(text) * 6 + 8);
    int error;

    if (out == NULL)
        return BOUNCER_MEMORY;
    error = bouncer_reply_json(reply, out, quote(text, out, 0));
    if (error == BOUNCER_PAYLOAD) /* it was not UTF-8 */
        error = bouncer_reply_json(reply, out, quote(text, out, 1));
    free(out);
    return error;
}

/* Makes the payload of an answer that the gateway takes, whatever the handler gave. NULL without memory. */
static char *make_answer(bouncer_linux *device, bouncer_text id, bouncer_status status, struct bouncer_reply *reply, size_t *length)
{
    size_t room = reply->length + BOUNCER_ANSWER_OVERHEAD + 64;
    char *out = malloc(room);
    bouncer_text result;
    int error;

    if (out == NULL)
        return NULL;
    result.data = reply->json;
    result.length = reply->length;
    if (status != BOUNCER_SUCCEEDED && status != BOUNCER_REJECTED)
        status = BOUNCER_FAILED;
    error = (int)bouncer_answer(&device->bundle.device, id, status, result, out, room, length);
    if (error == BOUNCER_OK)
        error = check_payload(device, out, *length);
    if (error != BOUNCER_OK) {
        char text[64];
        snprintf(text, sizeof text, "\"%s\"", bouncer_linux_error_name(error));
        result = bouncer_string(text);
        if (bouncer_answer(&device->bundle.device, id, BOUNCER_FAILED, result, out, room, length) != BOUNCER_OK) {
            free(out);
            return NULL;
        }
    }
    return out;
}

/* Puts an answer into the outbox unless it is there already. The lock is held. */
static void send_answer(bouncer_linux *device, const char *payload, size_t length)
{
    struct item *item;
    int error;

    for (item = device->journal.first; item != NULL; item = item->next)
        if (item->kind == ITEM_ANSWER && item->payload_length == length && memcmp(item->payload, payload, length) == 0)
            return;
    error = enqueue(device, ITEM_ANSWER, payload, length, NULL);
    if (error != BOUNCER_OK)
        report_error(device, "the answer to a command is not sent: %s", bouncer_linux_error_name(error));
}

/* Writes the answer down and sends it. The lock is held. */
static void answer(bouncer_linux *device, const uint8_t id[16], char *payload, size_t length)
{
    char name[33];

    if (payload == NULL) {
        report_error(device, "the answer to a command is not sent: out of memory");
        return;
    }
    if (is_kept(&device->memory, id)) {
        answer_name(id, name);
        if (file_replace(device->answers, name, payload, length) != 0)
            report_error(device, "the answer to a command cannot be written: %s", strerror(errno));
    }
    send_answer(device, payload, length);
    free(payload);
}

static void repeated(bouncer_linux *device, const bouncer_command *command, const uint8_t id[16])
{
    char name[33], interrupted[] = "\"interrupted\"";
    struct bouncer_reply reply;
    size_t length = 0;
    char *payload;

    report(device, EVENT_COMMAND_REFUSED, "repeated", strlen("repeated"));
    answer_name(id, name);
    payload = file_read(device->answers, name, MAX_PACKET, &length);
    if (payload != NULL) {
        send_answer(device, payload, length);
        free(payload);
        return;
    }
    if (errno != ENOENT) {
        report_error(device, "the answer to a command cannot be read: %s", strerror(errno));
        return;
    }
    /* The process ended before there was an answer. */
    reply.json = interrupted;
    reply.length = strlen(interrupted);
    payload = make_answer(device, command->id, BOUNCER_FAILED, &reply, &length);
    answer(device, id, payload, length);
}

static void execute(bouncer_linux *device, const bouncer_command *command, const uint8_t id[16])
{
    const bouncer_linux_options *o = &device->options;
    struct bouncer_reply reply = {NULL, 0};
    bouncer_status status = BOUNCER_REJECTED;
    size_t length = 0;
    char *payload;

    if (o->on_command != NULL) {
        pthread_mutex_unlock(&device->lock);
        status = o->on_command(o->context, command, &reply);
        pthread_mutex_lock(&device->lock);
    }
    payload = make_answer(device, command->id, status, &reply, &length);
    answer(device, id, payload, length);
    free(reply.json);
}

/* Takes a command into the memory and on the disk. If that fails the memory is as before, and the command is not executed. */
static bouncer_error take(bouncer_linux *device, const bouncer_command *command)
{
    bouncer_memory *m = &device->memory;
    size_t bytes = m->capacity * sizeof *m->entries, i;
    bouncer_memory_entry *entries = malloc(bytes);
    bouncer_memory before = *m;
    bouncer_error error;

    if (entries == NULL)
        return BOUNCER_ARGUMENT;
    memcpy(entries, m->entries, bytes);
    error = bouncer_memory_take(m, command->id, command->expires);
    if (error == BOUNCER_OK && save(device) != 0) {
        report_error(device, "a command is not executed, for the memory of commands cannot be written: %s", strerror(errno));
        memcpy(m->entries, entries, bytes);
        m->count = before.count;
        m->floor = before.floor;
        error = BOUNCER_ARGUMENT;
    }
    /* The answer of the one that has left. */
    for (i = 0; error == BOUNCER_OK && i < before.count; i++) {
        char name[33];
        if (is_kept(m, entries[i].id))
            continue;
        answer_name(entries[i].id, name);
        (void)unlinkat(device->answers, name, 0);
    }
    free(entries);
    return error;
}

static void parse_id(bouncer_text text, uint8_t id[16])
{
    size_t i, n = 0;

    for (i = 0; i < text.length && n < 16; i++) {
        unsigned byte;
        char pair[3] = {0, 0, 0};
        if (text.data[i] == '-')
            continue;
        memcpy(pair, text.data + i++, 2);
        (void)sscanf(pair, "%2x", &byte);
        id[n++] = (uint8_t)byte;
    }
}

/* The lock is held. */
static void handle(bouncer_linux *device, const struct queued_command *q)
{
    bouncer_command command;
    uint8_t id[16] = {0};
    bouncer_error error = bouncer_verify_command(&device->bundle.device, q->message, q->length, device_time(device), &command);

    if (error == BOUNCER_OK) {
        parse_id(command.id, id);
        error = take(device, &command);
    }
    if (error == BOUNCER_OK)
        execute(device, &command, id);
    else if (error == BOUNCER_REPEATED)
        repeated(device, &command, id);
    else if (error != BOUNCER_ARGUMENT)
        report(device, EVENT_COMMAND_REFUSED, bouncer_error_name(error), strlen(bouncer_error_name(error)));
    wake_worker(device);
}

void *commands_run(void *argument)
{
    bouncer_linux *device = argument;

    pthread_mutex_lock(&device->lock);
    while (!device->stopping) {
        struct queued_command *q = device->queue;
        if (q == NULL) {
            pthread_cond_wait(&device->changed, &device->lock);
            continue;
        }
        device->queue = q->next;
        if (device->queue == NULL)
            device->queue_end = &device->queue;
        device->queue_count--;
        handle(device, q);
        free(q);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}
