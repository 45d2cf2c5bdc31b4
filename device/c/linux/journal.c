/*
 * The outbox on the disk: a file to which records are appended, written again when most of it is done with.
 *
 * A record is the length of its body (4 bytes, least significant first), 8 bytes of the body's SHA-256, and the body: its kind and
 * what belongs to it. What does not check out at the end is what a crash has cut off; it is removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define NAME "outbox"
#define NEW_NAME "outbox.new"
#define HEAD 12
#define MAX_BODY ((size_t)4 << 20)
#define SLACK ((uint64_t)1 << 20) /* what may be done with before the file is written again */

enum record { RECORD_NEXT = 0, RECORD_ADD = 1, RECORD_SIGNED = 2, RECORD_SENT = 3, RECORD_DONE = 4 };

/* Of a RECORD_SIGNED before the message, which may be empty: it is to be signed again. Kind, delivery, timestamp, sent, may be repeated, message id. */
#define SIGNED_HEAD (1 + 8 + 8 + 4 + 1 + BOUNCER_UUID_LENGTH)
#define ADD_HEAD (1 + 8 + 1)

static void put(uint8_t *at, uint64_t value, int bytes)
{
    for (; bytes > 0; bytes--, value >>= 8)
        *at++ = (uint8_t)value;
}

static uint64_t get(const uint8_t *at, int bytes)
{
    uint64_t value = 0;

    while (bytes > 0)
        value = value << 8 | at[--bytes];
    return value;
}

static int checksum(const uint8_t *body, size_t length, uint8_t sum[8])
{
    uint8_t digest[EVP_MAX_MD_SIZE];

    if (EVP_Digest(body, length, digest, NULL, EVP_sha256(), NULL) != 1)
        return -1;
    memcpy(sum, digest, 8);
    return 0;
}

static int write_at(int file, uint64_t offset, const uint8_t *data, size_t length)
{
    while (length > 0) {
        ssize_t n = pwrite(file, data, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

/* Appends a record of two parts. On an error the file is as long as before, or at least its end is cut off when it is read. */
static int append(int file, uint64_t *size, const uint8_t *head, size_t head_length, const char *rest, size_t rest_length)
{
    size_t length = head_length + rest_length;
    uint8_t *record = malloc(HEAD + length);
    int error = 0;

    if (record == NULL) {
        errno = ENOMEM;
        return -1;
    }
    put(record, length, 4);
    memcpy(record + HEAD, head, head_length);
    if (rest_length > 0)
        memcpy(record + HEAD + head_length, rest, rest_length);
    if (checksum(record + HEAD, length, record + 4) != 0) {
        errno = EIO;
        error = -1;
    } else if (write_at(file, *size, record, HEAD + length) != 0) {
        int why = errno;
        /* If this fails too, the next record is written over it. */
        (void)!ftruncate(file, (off_t)*size);
        errno = why;
        error = -1;
    } else {
        *size += HEAD + length;
    }
    free(record);
    return error;
}

/* At most; an item without a signature may have a RECORD_SIGNED too. */
static uint64_t cost(const struct item *item)
{
    return HEAD + ADD_HEAD + item->payload_length + HEAD + SIGNED_HEAD + item->message_length;
}

static int write_add(int file, uint64_t *size, const struct item *item)
{
    uint8_t head[ADD_HEAD];

    head[0] = RECORD_ADD;
    put(head + 1, item->delivery, 8);
    head[9] = (uint8_t)item->kind;
    return append(file, size, head, sizeof head, item->payload, item->payload_length);
}

static int write_signed(int file, uint64_t *size, const struct item *item, unsigned sent)
{
    uint8_t head[SIGNED_HEAD];

    head[0] = RECORD_SIGNED;
    put(head + 1, item->delivery, 8);
    put(head + 9, (uint64_t)item->timestamp, 8);
    put(head + 17, sent, 4);
    head[21] = (uint8_t)item->may_be_repeated;
    memcpy(head + 22, item->message_id, BOUNCER_UUID_LENGTH);
    return append(file, size, head, sizeof head, item->message, item->message_length);
}

static int write_number(int file, uint64_t *size, enum record kind, uint64_t number)
{
    uint8_t head[9];

    head[0] = (uint8_t)kind;
    put(head + 1, number, 8);
    return append(file, size, head, sizeof head, NULL, 0);
}

static void item_free(struct item *item)
{
    free(item->payload);
    free(item->message);
    free(item);
}

void forget_signature(struct journal *journal, struct item *item)
{
    journal->live -= item->message_length;
    free(item->message);
    item->message = NULL;
    item->message_length = 0;
    item->copies = 0;
    item->unanswered = 0;
    item->reason[0] = '\0';
}

static struct item *item_new(uint64_t delivery, enum item_kind kind, const char *payload, size_t length)
{
    struct item *item = calloc(1, sizeof *item);

    if (item == NULL)
        return NULL;
    item->delivery = delivery;
    item->kind = kind;
    item->payload = malloc(length > 0 ? length : 1);
    if (item->payload == NULL) {
        free(item);
        return NULL;
    }
    memcpy(item->payload, payload, length);
    item->payload_length = length;
    return item;
}

static void link_item(struct journal *journal, struct item *item)
{
    if (journal->last != NULL)
        journal->last->next = item;
    else
        journal->first = item;
    journal->last = item;
    journal->count++;
    journal->bytes += item->payload_length;
    journal->live += cost(item);
}

static void unlink_item(struct journal *journal, struct item *item)
{
    struct item **link = &journal->first, *before = NULL;

    while (*link != item) {
        before = *link;
        link = &before->next;
    }
    *link = item->next;
    if (journal->last == item)
        journal->last = before;
    journal->count--;
    journal->bytes -= item->payload_length;
    journal->live -= cost(item);
}

static struct item *find(struct journal *journal, uint64_t delivery)
{
    struct item *item = journal->first;

    while (item != NULL && item->delivery != delivery)
        item = item->next;
    return item;
}

/* Takes over a record that checks out; -1 if it cannot be one of this version, -2 without memory. */
static int replay(struct journal *journal, const uint8_t *body, size_t length)
{
    struct item *item;
    uint64_t number;

    if (length < 9)
        return -1;
    number = get(body + 1, 8);
    if (body[0] == RECORD_NEXT) {
        if (number > journal->next)
            journal->next = number;
        return 0;
    }
    if (body[0] == RECORD_ADD) {
        if (length < ADD_HEAD || body[9] > ITEM_ANSWER || number == UINT64_MAX)
            return -1;
        item = item_new(number, (enum item_kind)body[9], (const char *)body + ADD_HEAD, length - ADD_HEAD);
        if (item == NULL)
            return -2;
        link_item(journal, item);
        if (number >= journal->next)
            journal->next = number + 1;
        return 0;
    }
    item = find(journal, number);
    if (item == NULL)
        return body[0] <= RECORD_DONE ? 0 : -1;
    switch (body[0]) {
    case RECORD_SIGNED:
        if (length < SIGNED_HEAD)
            return -1;
        forget_signature(journal, item);
        item->timestamp = (int64_t)get(body + 9, 8);
        item->sent = (unsigned)get(body + 17, 4);
        item->may_be_repeated = body[21] != 0;
        memcpy(item->message_id, body + 22, BOUNCER_UUID_LENGTH);
        if (length == SIGNED_HEAD)
            return 0;
        item->message = malloc(length - SIGNED_HEAD);
        if (item->message == NULL)
            return -2;
        item->message_length = length - SIGNED_HEAD;
        memcpy(item->message, body + SIGNED_HEAD, item->message_length);
        /* It is written before it is sent, so one cannot know whether it was. */
        item->copies = 1;
        item->unanswered = 1;
        journal->live += item->message_length;
        return 0;
    case RECORD_SENT:
        item->sent++;
        item->copies++;
        item->unanswered++;
        return 0;
    case RECORD_DONE:
        unlink_item(journal, item);
        item_free(item);
        return 0;
    default:
        return -1;
    }
}

static int read_exactly(int file, void *data, size_t length)
{
    char *at = data;

    while (length > 0) {
        ssize_t n = read(file, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            return 1;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

/* Reads all records; 1 if the end is damaged, -1 if it cannot be read. */
static int read_all(struct journal *journal)
{
    uint8_t head[HEAD], sum[8];
    uint8_t *body = malloc(MAX_BODY);
    int result = body == NULL ? -1 : 0;

    while (result == 0) {
        size_t length;
        off_t end = lseek(journal->file, 0, SEEK_END);
        if (end < 0 || lseek(journal->file, (off_t)journal->size, SEEK_SET) < 0) {
            result = -1;
            break;
        }
        if ((uint64_t)end == journal->size)
            break;
        result = read_exactly(journal->file, head, sizeof head);
        if (result != 0)
            break;
        length = get(head, 4);
        if (length > MAX_BODY) {
            result = 1;
            break;
        }
        result = read_exactly(journal->file, body, length);
        if (result != 0)
            break;
        if (checksum(body, length, sum) != 0) {
            result = -2;
        } else if (memcmp(sum, head + 4, sizeof sum) != 0) {
            result = 1;
        } else {
            result = replay(journal, body, length);
            result = result == -1 ? 1 : result;
        }
        if (result == 0)
            journal->size += HEAD + length;
    }
    free(body);
    if (result == -2) {
        errno = ENOMEM; /* nothing is damaged, so nothing is cut off */
        result = -1;
    }
    return result;
}

/* Writes what is live into a new file, which takes the place of the old one. */
static int rewrite(struct journal *journal)
{
    int file = openat(journal->directory, NEW_NAME, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600), error = 0;
    uint64_t size = 0;
    struct item *item;

    if (file < 0)
        return -1;
    error = write_number(file, &size, RECORD_NEXT, journal->next);
    for (item = journal->first; item != NULL && error == 0; item = item->next) {
        error = write_add(file, &size, item);
        /* Without a message: what was sent before under other ids. */
        if (error == 0 && (item->message != NULL || item->sent > 0 || item->may_be_repeated))
            error = write_signed(file, &size, item, item->copies > 1 ? item->sent - 1 : item->sent);
        /* Whether these bytes were sent more than once matters for the answer "replay". */
        if (error == 0 && item->copies > 1)
            error = write_number(file, &size, RECORD_SENT, item->delivery);
    }
    if (error == 0)
        error = fsync(file);
    if (error == 0)
        error = renameat(journal->directory, NEW_NAME, journal->directory, NAME);
    if (error != 0) {
        int why = errno;
        close(file);
        (void)unlinkat(journal->directory, NEW_NAME, 0);
        errno = why;
        return -1;
    }
    close(journal->file);
    journal->file = file;
    journal->size = size;
    return fsync(journal->directory);
}

int journal_open(struct journal *journal, int directory, int *damaged)
{
    int result;

    memset(journal, 0, sizeof *journal);
    journal->directory = directory;
    journal->next = 1;
    *damaged = 0;
    journal->file = openat(directory, NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (journal->file < 0)
        return -1;
    result = read_all(journal);
    if (result == 1) {
        *damaged = 1;
        result = ftruncate(journal->file, (off_t)journal->size) != 0 || fsync(journal->file) != 0 ? -1 : 0;
    }
    if (result == 0 && (fsync(journal->directory) != 0 || (journal->size > SLACK + 2 * journal->live && rewrite(journal) != 0)))
        result = -1;
    if (result != 0) {
        int why = errno;
        journal_close(journal);
        errno = why;
    }
    return result;
}

void journal_close(struct journal *journal)
{
    while (journal->first != NULL) {
        struct item *item = journal->first;
        journal->first = item->next;
        item_free(item);
    }
    journal->last = NULL;
    if (journal->file >= 0)
        close(journal->file);
    journal->file = -1;
}

struct item *journal_add(struct journal *journal, enum item_kind kind, const char *payload, size_t length)
{
    struct item *item = item_new(journal->next, kind, payload, length);
    uint64_t before = journal->size;

    if (item == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    if (write_add(journal->file, &journal->size, item) != 0) {
        item_free(item);
        return NULL;
    }
    if (fdatasync(journal->file) != 0) {
        int why = errno;
        /* It must not come back after it was said that it is not there. */
        if (ftruncate(journal->file, (off_t)before) == 0)
            journal->size = before;
        else
            (void)write_number(journal->file, &journal->size, RECORD_DONE, item->delivery);
        item_free(item);
        errno = why;
        return NULL;
    }
    journal->next++;
    link_item(journal, item);
    return item;
}

int journal_signed(struct journal *journal, struct item *item)
{
    if (write_signed(journal->file, &journal->size, item, item->sent + 1) != 0)
        return -1;
    journal->live += item->message_length;
    return 0;
}

int journal_sent(struct journal *journal, struct item *item)
{
    return write_number(journal->file, &journal->size, RECORD_SENT, item->delivery);
}

int journal_sync(struct journal *journal)
{
    return fdatasync(journal->file);
}

int journal_done(struct journal *journal, struct item *item)
{
    int error = write_number(journal->file, &journal->size, RECORD_DONE, item->delivery);

    unlink_item(journal, item);
    item_free(item);
    if (journal->size > SLACK + 2 * journal->live && rewrite(journal) != 0)
        error = -1;
    return error;
}
