#include "adapter.h"

#include <string.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/param_build.h>

#include "bouncer_openssl.h"

const char adapter_name[] = "OpenSSL";

static EVP_PKEY *opened;

int adapter_has(bouncer_algorithm algorithm)
{
    (void)algorithm;
    return 1;
}

static EVP_PKEY *p256(const uint8_t *private_key, const uint8_t *public_key)
{
    BIGNUM *number = BN_bin2bn(private_key, 32, NULL);
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    EVP_PKEY_CTX *maker = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    OSSL_PARAM *parameters;
    EVP_PKEY *key = NULL;

    OSSL_PARAM_BLD_push_utf8_string(builder, OSSL_PKEY_PARAM_GROUP_NAME, "prime256v1", 0);
    OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_PRIV_KEY, number);
    OSSL_PARAM_BLD_push_octet_string(builder, OSSL_PKEY_PARAM_PUB_KEY, public_key, 65);
    parameters = OSSL_PARAM_BLD_to_param(builder);
    if (EVP_PKEY_fromdata_init(maker) != 1 || EVP_PKEY_fromdata(maker, &key, EVP_PKEY_KEYPAIR, parameters) != 1)
        key = NULL;
    OSSL_PARAM_free(parameters);
    OSSL_PARAM_BLD_free(builder);
    EVP_PKEY_CTX_free(maker);
    BN_free(number);
    return key;
}

int adapter_open(bouncer_crypto *crypto, bouncer_algorithm algorithm, const uint8_t *private_key, const uint8_t *public_key)
{
    bouncer_key raw;
    uint8_t buffer[65];

    opened = NULL;
    if (algorithm == BOUNCER_ED25519)
        opened = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, private_key, 32);
    else if (algorithm == BOUNCER_ECDSA_P256)
        opened = p256(private_key, public_key);
    bouncer_openssl(crypto, opened);
    if (algorithm == BOUNCER_HMAC_SHA256)
        return 0;
    /* The raw public key that the library takes out of the key is the one of the vectors. */
    if (opened == NULL || bouncer_openssl_key(opened, &raw, buffer) != 0 || raw.algorithm != algorithm)
        return -1;
    return memcmp(raw.data, public_key, raw.length) == 0 ? 0 : -1;
}

void adapter_close(void)
{
    EVP_PKEY_free(opened);
    opened = NULL;
}
