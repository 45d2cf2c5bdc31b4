/* Paints the stack below, calls a function, and looks how deep the paint is gone. */
#include "stack.h"

#include <stdio.h>
#include <string.h>

#include "bouncer_mbedtls.h"

#define DEPTH 16384
#define PAINT 0xa5

static const char id[] = "550e8400-e29b-41d4-a716-446655440000";
static const char command[] = "{\"device_id\":\"sensor_001\",\"timestamp\":1,\"message_id\":\"01923456-789a-8bcd-8def-0123456789ab\","
                              "\"payload\":{\"command\":{\"a\":[1,{\"b\":2}]},\"expires\":9},\"signature\":\""
                              "0000000000000000000000000000000000000000000000000000000000000000\"}";
static const char notice[] = "{\"message_id\":null,\"reason\":\"stale\",\"server_time\":1}";

static bouncer_text secret;
static bouncer_crypto crypto;
static bouncer_device device;
static char out[1024];
static size_t length;
static bouncer_error error;
static bouncer_command found;
static bouncer_notice read_notice;
static bouncer_memory memory;
static bouncer_memory_entry entries[4];

static int zeros(void *context, bouncer_text key, const bouncer_signed *bytes, uint8_t mac[32])
{
    (void)context;
    (void)key;
    (void)bytes;
    memset(mac, 0, 32);
    return 0;
}

static void sign(void)
{
    error = bouncer_sign(&device, 1727712000, bouncer_string(id), bouncer_string("{\"a\":[1,{\"b\":2}]}"), out, sizeof out, &length);
}

static void verify(void)
{
    error = bouncer_verify_command(&device, command, sizeof command - 1, 0, &found);
}

static void verify_own(void)
{
    error = bouncer_verify_message(&device, out, length);
}

static void take(void)
{
    error = bouncer_memory_take(&memory, bouncer_string(id), 5);
}

static void answer(void)
{
    error = bouncer_answer(&device, bouncer_string(id), BOUNCER_SUCCEEDED, bouncer_string("{\"a\":[1,{\"b\":2}]}"), out, sizeof out, &length);
}

static void read(void)
{
    error = bouncer_read_notice(notice, sizeof notice - 1, &read_notice);
}

static void nothing(void)
{
    error = BOUNCER_OK;
}

static __attribute__((noinline)) size_t depth_of(void (*function)(void))
{
    volatile unsigned char *top = (volatile unsigned char *)__builtin_frame_address(0) - 64;
    size_t i;

    for (i = 1; i <= DEPTH; i++)
        top[-(ptrdiff_t)i] = PAINT;
    function();
    for (i = DEPTH; i > 0 && top[-(ptrdiff_t)i] == PAINT; i--)
        continue;
    return i;
}

static void report(const char *name, void (*function)(void))
{
    size_t base = depth_of(nothing), depth = depth_of(function);

    printf("  stack %-44s %5lu bytes%s\n", name, (unsigned long)(depth > base ? depth - base : 0),
           error == BOUNCER_OK ? "" : " FAIL");
}

void measure_stack(void)
{
    static bouncer_mbedtls_key key;
    static uint8_t point[65];
    static bouncer_key own;
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;

    secret = bouncer_string("secret");
    crypto.hmac = zeros;
    device.id = bouncer_string("sensor_001");
    device.algorithm = BOUNCER_HMAC_SHA256;
    device.secrets = &secret;
    device.secret_count = 1;
    device.crypto = &crypto;
    memory.entries = entries;
    memory.capacity = 4;
    report("bouncer_sign, without the cryptography", sign);
    report("bouncer_verify_command, without it", verify);
    report("bouncer_memory_take", take);
    report("bouncer_answer", answer);
    report("bouncer_read_notice", read);
    (void)psa_crypto_init();
    bouncer_mbedtls(&crypto, &key);
    report("bouncer_sign, HMAC by mbedTLS", sign);
    report("bouncer_verify_message, HMAC by mbedTLS", verify_own);
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_SIGN_HASH);
    key.algorithm = PSA_ALG_ECDSA(PSA_ALG_SHA_256);
    psa_set_key_algorithm(&attributes, key.algorithm);
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    device.algorithm = BOUNCER_ECDSA_P256;
    own.algorithm = BOUNCER_ECDSA_P256;
    own.data = point;
    device.keys = &own;
    device.key_count = 1;
    if (psa_generate_key(&attributes, &key.id) != PSA_SUCCESS ||
        psa_export_public_key(key.id, point, sizeof point, &own.length) != PSA_SUCCESS)
        printf("  stack: no key FAIL\n");
    report("bouncer_sign, P-256 by mbedTLS", sign);
    report("bouncer_verify_message, P-256 by mbedTLS", verify_own);
    (void)psa_destroy_key(key.id);
    mbedtls_psa_crypto_free();
}
