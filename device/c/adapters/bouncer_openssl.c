#include "bouncer_openssl.h"

#include <string.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/params.h>

static int hmac(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    char digest[] = "SHA256";
    OSSL_PARAM parameters[2];
    EVP_MAC *algorithm = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *operation = algorithm == NULL ? NULL : EVP_MAC_CTX_new(algorithm);
    size_t length = 0;
    int good;

    (void)context;
    parameters[0] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0);
    parameters[1] = OSSL_PARAM_construct_end();
    good = operation != NULL &&
           EVP_MAC_init(operation, (const unsigned char *)secret.data, secret.length, parameters) == 1 &&
           EVP_MAC_update(operation, bytes->head, bytes->head_length) == 1 &&
           EVP_MAC_update(operation, bytes->tail, bytes->tail_length) == 1 &&
           EVP_MAC_final(operation, mac, &length, 32) == 1 && length == 32;
    EVP_MAC_CTX_free(operation);
    EVP_MAC_free(algorithm);
    return good ? 0 : -1;
}

static int sign_ed25519(EVP_PKEY *key, EVP_MD_CTX *operation, const bouncer_signed *bytes, uint8_t signature[64])
{
    size_t length = 64;

    /* The core gives the two parts in one piece when it signs. */
    return EVP_DigestSignInit(operation, NULL, NULL, NULL, key) == 1 &&
           EVP_DigestSign(operation, signature, &length, bytes->head, bytes->head_length + bytes->tail_length) == 1 &&
           length == 64;
}

static int sign_p256(EVP_PKEY *key, EVP_MD_CTX *operation, const bouncer_signed *bytes, uint8_t signature[64])
{
    unsigned char der[80];
    const unsigned char *at = der;
    size_t length = sizeof der;
    ECDSA_SIG *numbers;
    int good;

    if (EVP_PKEY_get_size(key) > (int)sizeof der || EVP_DigestSignInit(operation, NULL, EVP_sha256(), NULL, key) != 1 ||
        EVP_DigestSignUpdate(operation, bytes->head, bytes->head_length) != 1 ||
        EVP_DigestSignUpdate(operation, bytes->tail, bytes->tail_length) != 1 ||
        EVP_DigestSignFinal(operation, der, &length) != 1)
        return 0;
    numbers = d2i_ECDSA_SIG(NULL, &at, (long)length);
    good = numbers != NULL && BN_bn2binpad(ECDSA_SIG_get0_r(numbers), signature, 32) == 32 &&
           BN_bn2binpad(ECDSA_SIG_get0_s(numbers), signature + 32, 32) == 32;
    ECDSA_SIG_free(numbers);
    return good;
}

static int is_p256(EVP_PKEY *key)
{
    char group[32];
    size_t length = 0;

    return EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, group, sizeof group, &length) == 1 &&
           strcmp(group, "prime256v1") == 0;
}

static int sign(void *context, bouncer_algorithm algorithm, const bouncer_signed *bytes, uint8_t signature[64])
{
    EVP_PKEY *key = (EVP_PKEY *)context;
    EVP_MD_CTX *operation = EVP_MD_CTX_new();
    int good = 0;

    if (operation != NULL && key != NULL) {
        if (algorithm == BOUNCER_ED25519 && EVP_PKEY_is_a(key, "ED25519"))
            good = sign_ed25519(key, operation, bytes, signature);
        else if (algorithm == BOUNCER_ECDSA_P256 && is_p256(key))
            good = sign_p256(key, operation, bytes, signature);
    }
    EVP_MD_CTX_free(operation);
    return good ? 0 : -1;
}

static int verify_ed25519(const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    size_t length = bytes->head_length + bytes->tail_length;
    unsigned char *all = (unsigned char *)OPENSSL_malloc(length);
    EVP_PKEY *public_key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key->data, key->length);
    EVP_MD_CTX *operation = EVP_MD_CTX_new();
    int good = 0;

    if (all != NULL && public_key != NULL && operation != NULL) {
        memcpy(all, bytes->head, bytes->head_length);
        memcpy(all + bytes->head_length, bytes->tail, bytes->tail_length);
        good = EVP_DigestVerifyInit(operation, NULL, NULL, NULL, public_key) == 1 &&
               EVP_DigestVerify(operation, signature, 64, all, length) == 1;
    }
    EVP_MD_CTX_free(operation);
    EVP_PKEY_free(public_key);
    OPENSSL_free(all);
    return good;
}

static EVP_PKEY *p256_key(const bouncer_key *key)
{
    char group[] = "prime256v1";
    uint8_t point[65];
    OSSL_PARAM parameters[3];
    EVP_PKEY *public_key = NULL;
    EVP_PKEY_CTX *maker = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);

    memcpy(point, key->data, sizeof point);
    parameters[0] = OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0);
    parameters[1] = OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, point, sizeof point);
    parameters[2] = OSSL_PARAM_construct_end();
    if (maker != NULL && EVP_PKEY_fromdata_init(maker) == 1 &&
        EVP_PKEY_fromdata(maker, &public_key, EVP_PKEY_PUBLIC_KEY, parameters) != 1) {
        EVP_PKEY_free(public_key);
        public_key = NULL;
    }
    EVP_PKEY_CTX_free(maker);
    return public_key;
}

/* Writes r and s in DER, and returns the length, or 0. */
static size_t to_der(const uint8_t signature[64], unsigned char der[80])
{
    ECDSA_SIG *numbers = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(signature, 32, NULL), *s = BN_bin2bn(signature + 32, 32, NULL);
    unsigned char *at = der;
    int length = 0;

    if (numbers == NULL || r == NULL || s == NULL || ECDSA_SIG_set0(numbers, r, s) != 1) {
        BN_free(r);
        BN_free(s);
    } else if (i2d_ECDSA_SIG(numbers, NULL) <= 80) {
        length = i2d_ECDSA_SIG(numbers, &at);
    }
    ECDSA_SIG_free(numbers);
    return length > 0 ? (size_t)length : 0;
}

static int verify_p256(const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    unsigned char der[80];
    size_t length = to_der(signature, der);
    EVP_PKEY *public_key = key->length == 65 ? p256_key(key) : NULL;
    EVP_MD_CTX *operation = EVP_MD_CTX_new();
    int good = length > 0 && public_key != NULL && operation != NULL &&
               EVP_DigestVerifyInit(operation, NULL, EVP_sha256(), NULL, public_key) == 1 &&
               EVP_DigestVerifyUpdate(operation, bytes->head, bytes->head_length) == 1 &&
               EVP_DigestVerifyUpdate(operation, bytes->tail, bytes->tail_length) == 1 &&
               EVP_DigestVerifyFinal(operation, der, length) == 1;

    EVP_MD_CTX_free(operation);
    EVP_PKEY_free(public_key);
    return good;
}

static int verify(void *context, const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    int good = 0;

    (void)context;
    if (key->algorithm == BOUNCER_ED25519)
        good = verify_ed25519(key, bytes, signature);
    else if (key->algorithm == BOUNCER_ECDSA_P256)
        good = verify_p256(key, bytes, signature);
    return good ? 0 : -1;
}

void bouncer_openssl(bouncer_crypto *crypto, EVP_PKEY *private_key)
{
    crypto->hmac = hmac;
    crypto->hmac_context = NULL;
    crypto->sign = sign;
    crypto->sign_context = private_key;
    crypto->verify = verify;
    crypto->verify_context = NULL;
}

int bouncer_openssl_key(EVP_PKEY *public_key, bouncer_key *key, uint8_t buffer[65])
{
    size_t length = 65;

    if (EVP_PKEY_is_a(public_key, "ED25519")) {
        key->algorithm = BOUNCER_ED25519;
        if (EVP_PKEY_get_raw_public_key(public_key, buffer, &length) != 1 || length != 32)
            return -1;
    } else if (is_p256(public_key)) {
        key->algorithm = BOUNCER_ECDSA_P256;
        if (EVP_PKEY_set_utf8_string_param(public_key, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, "uncompressed") != 1 ||
            EVP_PKEY_get_octet_string_param(public_key, OSSL_PKEY_PARAM_PUB_KEY, buffer, 65, &length) != 1 || length != 65)
            return -1;
    } else {
        return -1;
    }
    key->data = buffer;
    key->length = length;
    return 0;
}
