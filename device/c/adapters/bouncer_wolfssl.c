#include "bouncer_wolfssl.h"

#include <string.h>

#include <wolfssl/wolfcrypt/hmac.h>
#include <wolfssl/wolfcrypt/sha256.h>

static int hmac(void *context, bouncer_text secret, const bouncer_signed *bytes, uint8_t mac[32])
{
    Hmac operation;
    int good;

    (void)context;
    if (wc_HmacInit(&operation, NULL, INVALID_DEVID) != 0)
        return -1;
    good = wc_HmacSetKey(&operation, WC_SHA256, (const byte *)secret.data, (word32)secret.length) == 0 &&
           wc_HmacUpdate(&operation, bytes->head, (word32)bytes->head_length) == 0 &&
           wc_HmacUpdate(&operation, bytes->tail, (word32)bytes->tail_length) == 0 && wc_HmacFinal(&operation, mac) == 0;
    wc_HmacFree(&operation);
    return good ? 0 : -1;
}

static int sha256(const bouncer_signed *bytes, uint8_t hash[32])
{
    wc_Sha256 operation;
    int good;

    if (wc_InitSha256(&operation) != 0)
        return 0;
    good = wc_Sha256Update(&operation, bytes->head, (word32)bytes->head_length) == 0 &&
           wc_Sha256Update(&operation, bytes->tail, (word32)bytes->tail_length) == 0 &&
           wc_Sha256Final(&operation, hash) == 0;
    wc_Sha256Free(&operation);
    return good;
}

/* Moves a number of at most 32 bytes to the end of the 32. */
static int pad(uint8_t number[32], word32 length)
{
    if (length > 32)
        return 0;
    memmove(number + 32 - length, number, length);
    memset(number, 0, 32 - length);
    return 1;
}

static int sign_p256(bouncer_wolfssl_key *key, const bouncer_signed *bytes, uint8_t signature[64])
{
    uint8_t hash[32], der[ECC_MAX_SIG_SIZE];
    word32 length = sizeof der, r = 32, s = 32;

    return key->ecc != NULL && key->random != NULL && wc_ecc_get_curve_id(key->ecc->idx) == ECC_SECP256R1 &&
           sha256(bytes, hash) && wc_ecc_sign_hash(hash, sizeof hash, der, &length, key->random, key->ecc) == 0 &&
           wc_ecc_sig_to_rs(der, length, signature, &r, signature + 32, &s) == 0 && pad(signature, r) &&
           pad(signature + 32, s);
}

static int sign(void *context, bouncer_algorithm algorithm, const bouncer_signed *bytes, uint8_t signature[64])
{
    bouncer_wolfssl_key *key = (bouncer_wolfssl_key *)context;

    if (key == NULL)
        return -1;
    if (algorithm == BOUNCER_ECDSA_P256)
        return sign_p256(key, bytes, signature) ? 0 : -1;
#ifdef HAVE_ED25519
    if (algorithm == BOUNCER_ED25519) {
        word32 length = 64;
        /* The core gives the two parts in one piece when it signs. */
        return key->ed25519 != NULL &&
                       wc_ed25519_sign_msg(bytes->head, (word32)(bytes->head_length + bytes->tail_length), signature,
                                           &length, key->ed25519) == 0 &&
                       length == 64
                   ? 0
                   : -1;
    }
#endif
    return BOUNCER_UNSUPPORTED;
}

static int verify_p256(const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    ecc_key public_key;
    uint8_t hash[32], der[ECC_MAX_SIG_SIZE];
    word32 length = sizeof der;
    int good, result = 0;

    if (key->length != 65 || wc_ecc_init(&public_key) != 0)
        return 0;
    good = wc_ecc_import_x963_ex(key->data, (word32)key->length, &public_key, ECC_SECP256R1) == 0 &&
           wc_ecc_check_key(&public_key) == 0 && sha256(bytes, hash) &&
           wc_ecc_rs_raw_to_sig(signature, 32, signature + 32, 32, der, &length) == 0 &&
           wc_ecc_verify_hash(der, length, hash, sizeof hash, &result, &public_key) == 0 && result == 1;
    wc_ecc_free(&public_key);
    return good;
}

#ifdef HAVE_ED25519
static int verify_ed25519(const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    ed25519_key public_key;
    size_t length = bytes->head_length + bytes->tail_length;
    byte *all;
    int good = 0, result = 0;

    if (key->length != 32 || wc_ed25519_init(&public_key) != 0)
        return 0;
    all = (byte *)XMALLOC(length, NULL, DYNAMIC_TYPE_TMP_BUFFER);
    if (all != NULL) {
        memcpy(all, bytes->head, bytes->head_length);
        memcpy(all + bytes->head_length, bytes->tail, bytes->tail_length);
        good = wc_ed25519_import_public(key->data, (word32)key->length, &public_key) == 0 &&
               wc_ed25519_verify_msg(signature, 64, all, (word32)length, &result, &public_key) == 0 && result == 1;
    }
    XFREE(all, NULL, DYNAMIC_TYPE_TMP_BUFFER);
    wc_ed25519_free(&public_key);
    return good;
}
#endif

static int verify(void *context, const bouncer_key *key, const bouncer_signed *bytes, const uint8_t signature[64])
{
    (void)context;
    if (key->algorithm == BOUNCER_ECDSA_P256)
        return verify_p256(key, bytes, signature) ? 0 : -1;
#ifdef HAVE_ED25519
    if (key->algorithm == BOUNCER_ED25519)
        return verify_ed25519(key, bytes, signature) ? 0 : -1;
#endif
    return BOUNCER_UNSUPPORTED;
}

void bouncer_wolfssl(bouncer_crypto *crypto, bouncer_wolfssl_key *key)
{
    crypto->hmac = hmac;
    crypto->hmac_context = NULL;
    crypto->sign = sign;
    crypto->sign_context = key;
    crypto->verify = verify;
    crypto->verify_context = NULL;
}
