/*
 * Fuzzes the parsers of what reaches a device. The HMAC is all zeros, so that the fuzzer can make commands that verify; what the
 * core says of them is checked.
 */
#include <stdlib.h>
#include <string.h>

#include "bouncer_device.h"
#include "bouncer_json.h"

static int zeros(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    (void)context;
    (void)secret;
    (void)bytes;
    memset(mac, 0, 32);
    return 0;
}

static void require(int condition)
{
    if (!condition)
        abort();
}

static int within(bouncer_text text, const char *data, size_t size)
{
    return text.data >= data && text.data + text.length <= data + size;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    const char *data = (const char *)input;
    bouncer_text secret = bouncer_string("secret");
    bouncer_crypto crypto;
    bouncer_device device;
    bouncer_command command, again;
    bouncer_notice notice;
    bouncer_error error;

    memset(&crypto, 0, sizeof crypto);
    crypto.hmac = zeros;
    memset(&device, 0, sizeof device);
    device.id = bouncer_string("sensor_001");
    device.algorithm = BOUNCER_HMAC_SHA256;
    device.secrets = &secret;
    device.secret_count = 1;
    device.crypto = &crypto;

    error = bouncer_verify_command(&device, data, size, BOUNCER_NO_CLOCK, &command);
    if (error == BOUNCER_OK) {
        require(within(command.id, data, size) && within(command.command, data, size));
        require(bouncer_same_id(command.id, command.id) && command.id.data[14] == '8');
        require(command.command.length > 0 && command.expires >= 0 && command.expires <= BOUNCER_MAX_TIME);
        require(command.timestamp >= 0 && command.timestamp <= BOUNCER_MAX_TIME);
        require(bouncer_json_value(command.command.data, command.command.data + command.command.length, BOUNCER_MAX_DEPTH - 2) ==
                command.command.data + command.command.length);
        /* The clock alone makes the difference. */
        require(bouncer_verify_command(&device, data, size, command.expires, &again) == BOUNCER_EXPIRED);
        if (command.expires > 0)
            require(bouncer_verify_command(&device, data, size, command.expires - 1, &again) == BOUNCER_OK);
        /* A command is a message: the gateway would read the same. */
        require(size > BOUNCER_MAX_MESSAGE || bouncer_verify_message(&device, data, size) == BOUNCER_OK);
    }
    if (bouncer_read_notice(data, size, &notice) == BOUNCER_OK) {
        require(within(notice.reason, data, size) && notice.server_time >= 0 && notice.server_time <= BOUNCER_MAX_TIME);
        require(notice.message_id.data == NULL || bouncer_same_id(notice.message_id, notice.message_id));
        /* It has other members than a message. */
        require(error == BOUNCER_MALFORMED);
    }
    return 0;
}
