/* The agent of the library in C: test/devices/doc.go says what it reads and prints. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "bouncer_linux.h"

enum what { ANSWER, FAIL, DIE };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t offset;
static enum what what;
static unsigned commands;

static void print(const char *line)
{
    pthread_mutex_lock(&lock);
    fputs(line, stdout);
    putchar('\n');
    fflush(stdout);
    pthread_mutex_unlock(&lock);
}

/* Prints an object and frees it. */
static void event(json_t *object)
{
    char *line = object == NULL ? NULL : json_dumps(object, JSON_COMPACT);

    if (line == NULL) {
        fprintf(stderr, "agent: an event cannot be printed\n");
        exit(1);
    }
    print(line);
    free(line);
    json_decref(object);
}

static int64_t now(void *context)
{
    int64_t shifted;

    (void)context;
    pthread_mutex_lock(&lock);
    shifted = (int64_t)time(NULL) + offset;
    pthread_mutex_unlock(&lock);
    return shifted;
}

static void on_outcome(void *context, const bouncer_outcome *o)
{
    (void)context;
    event(json_pack("{s:s,s:I,s:s,s:s,s:s,s:i,s:b}", "event", "outcome", "delivery", (json_int_t)o->delivery, "outcome",
                    bouncer_result_name(o->result), "reason", o->reason, "message_id", o->message_id, "sent", (int)o->sent,
                    "may_be_repeated", o->may_be_repeated));
}

static void on_connection(void *context, int connected)
{
    (void)context;
    event(json_pack("{s:s}", "event", connected ? "connected" : "disconnected"));
}

static bouncer_status on_command(void *context, const bouncer_command *command, bouncer_reply *reply)
{
    size_t size = command->command.length + 128;
    char *line = malloc(size), result[32];
    enum what todo;
    unsigned n;

    (void)context;
    if (line == NULL)
        return BOUNCER_FAILED;
    snprintf(line, size, "{\"event\":\"command\",\"id\":\"%.*s\",\"command\":%.*s}", (int)command->id.length, command->id.data,
             (int)command->command.length, command->command.data);
    /* White space in the command may have line ends; outside strings they may be replaced, and inside they are escaped. */
    for (n = 0; line[n] != '\0'; n++)
        if (line[n] == '\n' || line[n] == '\r')
            line[n] = ' ';
    print(line);
    free(line);
    pthread_mutex_lock(&lock);
    todo = what;
    n = ++commands;
    pthread_mutex_unlock(&lock);
    if (todo == DIE)
        (void)kill(getpid(), SIGKILL);
    if (todo == FAIL) {
        (void)bouncer_reply_text(reply, "broken");
        return BOUNCER_FAILED;
    }
    snprintf(result, sizeof result, "{\"n\":%u}", n);
    (void)bouncer_reply_json(reply, result, strlen(result));
    return BOUNCER_SUCCEEDED;
}

static void on_command_refused(void *context, const char *reason)
{
    (void)context;
    event(json_pack("{s:s,s:s}", "event", "command_refused", "reason", reason));
}

static void on_response(void *context, const char *text, size_t length)
{
    json_t *string = json_stringn(text, length);

    (void)context;
    if (string == NULL) /* not UTF-8 */
        string = json_string("?");
    event(json_pack("{s:s,s:o}", "event", "response", "text", string));
}

static void on_error(void *context, const char *text)
{
    json_t *string = json_string(text);

    (void)context;
    event(json_pack("{s:s,s:o}", "event", "error", "error", string == NULL ? json_string("?") : string));
}

static void log_line(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, "%s\n", line);
}

static void publish(bouncer_linux *device, json_t *order, const char *payload, size_t length)
{
    const char *tag = json_string_value(json_object_get(order, "tag"));
    bouncer_delivery *delivery;
    int error = bouncer_linux_publish(device, payload, length, &delivery);

    if (error != BOUNCER_OK) {
        event(json_pack("{s:s,s:s,s:s}", "event", "not_queued", "tag", tag == NULL ? "" : tag, "error", bouncer_linux_error_name(error)));
        return;
    }
    event(json_pack("{s:s,s:s,s:I}", "event", "queued", "tag", tag == NULL ? "" : tag, "delivery",
                    (json_int_t)bouncer_delivery_number(delivery)));
    bouncer_delivery_free(delivery);
}

/* The payload is the last member, and is taken as its bytes. Returns its place in the line, and cuts the line before it. */
static char *take_payload(char *line, size_t *length)
{
    char *at = strstr(line, "\"payload\""), *end = line + strlen(line);

    if (at == NULL)
        return NULL;
    while (end > at && end[-1] != '}')
        end--;
    if (end > at)
        *--end = '\0';
    *at = '\0'; /* what is before it ends with a comma then */
    at += strlen("\"payload\"") + 0;
    at += strspn(at, " \t");
    if (*at != ':')
        return NULL;
    at++;
    at += strspn(at, " \t");
    *length = (size_t)(end - at);
    return at;
}

/* Carries out an order; whether to go on. */
static int carry_out(bouncer_linux *device, char *line)
{
    size_t length = 0;
    char *payload = take_payload(line, &length), *comma;
    json_t *order;
    const char *op, *todo;
    int go_on = 1;

    if (payload != NULL) {
        comma = strrchr(line, ',');
        if (comma != NULL)
            *comma = '}';
        if (comma != NULL)
            comma[1] = '\0';
    }
    order = json_loads(line, 0, NULL);
    op = json_string_value(json_object_get(order, "op"));
    if (op == NULL) {
        fprintf(stderr, "agent: no order: %s\n", line);
        exit(2);
    }
    if (strcmp(op, "start") == 0) {
        int error = bouncer_linux_start(device);
        if (error != BOUNCER_OK)
            on_error(NULL, bouncer_linux_error_name(error));
    } else if (strcmp(op, "publish") == 0 && payload != NULL) {
        publish(device, order, payload, length);
    } else if (strcmp(op, "clock") == 0) {
        pthread_mutex_lock(&lock);
        offset = (int64_t)json_integer_value(json_object_get(order, "offset"));
        pthread_mutex_unlock(&lock);
    } else if (strcmp(op, "on_command") == 0 && (todo = json_string_value(json_object_get(order, "do"))) != NULL) {
        pthread_mutex_lock(&lock);
        what = strcmp(todo, "fail") == 0 ? FAIL : strcmp(todo, "die") == 0 ? DIE : ANSWER;
        pthread_mutex_unlock(&lock);
    } else if (strcmp(op, "stop") == 0) {
        go_on = 0;
    } else {
        fprintf(stderr, "agent: an unknown order: %s\n", op);
        exit(2);
    }
    json_decref(order);
    return go_on;
}

int main(int count, char **arguments)
{
    bouncer_linux_options options;
    bouncer_linux *device;
    char message[512] = "", *line = NULL;
    size_t size = 0;
    int error;

    if (count != 3) {
        fprintf(stderr, "usage: agent BUNDLE STATE\n");
        return 2;
    }
    memset(&options, 0, sizeof options);
    options.state = arguments[2];
    options.now = now;
    options.on_outcome = on_outcome;
    options.on_connection = on_connection;
    options.on_command = on_command;
    options.on_command_refused = on_command_refused;
    options.on_response = on_response;
    options.on_error = on_error;
    options.log = log_line;
    error = bouncer_linux_open(arguments[1], &options, &device, message, sizeof message);
    if (error != BOUNCER_OK) {
        fprintf(stderr, "agent: %s: %s\n", bouncer_linux_error_name(error), message);
        return 1;
    }
    event(json_pack("{s:s}", "event", "ready"));
    while (getline(&line, &size, stdin) > 0 && carry_out(device, line))
        continue;
    free(line);
    bouncer_linux_close(device);
    return 0;
}
