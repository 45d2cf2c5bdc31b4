#include "adapter.h"

#include "bouncer_mbedtls.h"

const char adapter_name[] = "mbedTLS";

static bouncer_mbedtls_key opened;
static int is_open;

int adapter_has(bouncer_algorithm algorithm)
{
    return algorithm != BOUNCER_ED25519;
}

int adapter_open(bouncer_crypto *crypto, bouncer_algorithm algorithm, const uint8_t *private_key, const uint8_t *public_key)
{
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;

    (void)public_key;
    is_open = 0;
    bouncer_mbedtls(crypto, NULL);
    if (psa_crypto_init() != PSA_SUCCESS)
        return -1;
    if (algorithm != BOUNCER_ECDSA_P256)
        return 0;
    opened.algorithm = PSA_ALG_ECDSA(PSA_ALG_SHA_256);
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_SIGN_HASH);
    psa_set_key_algorithm(&attributes, opened.algorithm);
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    if (psa_import_key(&attributes, private_key, 32, &opened.id) != PSA_SUCCESS)
        return -1;
    is_open = 1;
    bouncer_mbedtls(crypto, &opened);
    return 0;
}

void adapter_close(void)
{
    if (is_open)
        (void)psa_destroy_key(opened.id);
    is_open = 0;
    /* Nothing is left behind: the sanitizers would say so. */
    mbedtls_psa_crypto_free();
}
