/* Of the Arduino boards, those of the ESP32 have mbedTLS; on others this file is empty. */
#if !defined(ARDUINO) || defined(ARDUINO_ARCH_ESP32)

#include "bouncer_mbedtls.h"

static int hmac(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
    psa_mac_operation_t operation = PSA_MAC_OPERATION_INIT;
    psa_key_id_t key;
    psa_status_t status;
    size_t length = 0;

    (void)context;
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_SIGN_MESSAGE);
    psa_set_key_algorithm(&attributes, PSA_ALG_HMAC(PSA_ALG_SHA_256));
    psa_set_key_type(&attributes, PSA_KEY_TYPE_HMAC);
    status = psa_crypto_init();
    if (status == PSA_SUCCESS)
        status = psa_import_key(&attributes, (const uint8_t *)secret.data, secret.length, &key);
    if (status != PSA_SUCCESS)
        return -1;
    status = psa_mac_sign_setup(&operation, key, PSA_ALG_HMAC(PSA_ALG_SHA_256));
    if (status == PSA_SUCCESS)
        status = psa_mac_update(&operation, bytes->head, bytes->head_length);
    if (status == PSA_SUCCESS)
        status = psa_mac_update(&operation, bytes->tail, bytes->tail_length);
    if (status == PSA_SUCCESS)
        status = psa_mac_sign_finish(&operation, mac, 32, &length);
    (void)psa_mac_abort(&operation);
    (void)psa_destroy_key(key);
    return status == PSA_SUCCESS && length == 32 ? 0 : -1;
}

static psa_status_t sha256(const bouncer_signed *bytes, uint8_t hash[32])
{
    psa_hash_operation_t operation = PSA_HASH_OPERATION_INIT;
    size_t length = 0;
    psa_status_t status = psa_crypto_init();

    if (status == PSA_SUCCESS)
        status = psa_hash_setup(&operation, PSA_ALG_SHA_256);
    if (status == PSA_SUCCESS)
        status = psa_hash_update(&operation, bytes->head, bytes->head_length);
    if (status == PSA_SUCCESS)
        status = psa_hash_update(&operation, bytes->tail, bytes->tail_length);
    if (status == PSA_SUCCESS)
        status = psa_hash_finish(&operation, hash, 32, &length);
    (void)psa_hash_abort(&operation);
    return status == PSA_SUCCESS && length != 32 ? PSA_ERROR_GENERIC_ERROR : status;
}

static int sign(void *context, bouncer_algorithm algorithm, const bouncer_signed *bytes, uint8_t signature[64])
{
    const bouncer_mbedtls_key *key = (const bouncer_mbedtls_key *)context;
    uint8_t hash[32];
    size_t length = 0;

    if (algorithm != BOUNCER_ECDSA_P256)
        return BOUNCER_UNSUPPORTED;
    if (key == NULL || sha256(bytes, hash) != PSA_SUCCESS)
        return -1;
    if (psa_sign_hash(key->id, key->algorithm, hash, sizeof hash, signature, 64, &length) != PSA_SUCCESS)
        return -1;
    return length == 64 ? 0 : -1;
}

static int verify(void *context, const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
    psa_key_id_t id;
    psa_status_t status;
    uint8_t hash[32];

    (void)context;
    if (key->algorithm != BOUNCER_ECDSA_P256)
        return BOUNCER_UNSUPPORTED;
    if (key->length != 65 || sha256(bytes, hash) != PSA_SUCCESS)
        return -1;
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_VERIFY_HASH);
    psa_set_key_algorithm(&attributes, PSA_ALG_ECDSA(PSA_ALG_SHA_256));
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    if (psa_import_key(&attributes, key->data, key->length, &id) != PSA_SUCCESS)
        return -1;
    status = psa_verify_hash(id, PSA_ALG_ECDSA(PSA_ALG_SHA_256), hash, sizeof hash, signature, 64);
    (void)psa_destroy_key(id);
    return status == PSA_SUCCESS ? 0 : -1;
}

void bouncer_mbedtls(bouncer_crypto *crypto, const bouncer_mbedtls_key *key)
{
    crypto->hmac = hmac;
    crypto->hmac_context = NULL;
    crypto->sign = sign;
    crypto->sign_context = (void *)(uintptr_t)key; /* read only */
    crypto->verify = verify;
    crypto->verify_context = NULL;
}

#else
typedef int bouncer_mbedtls_is_not_here; /* a translation unit may not be empty */
#endif
