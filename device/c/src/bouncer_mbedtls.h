/* The cryptography of bouncer_device by mbedTLS: the PSA API, of mbedTLS 2.28 and later. */
#ifndef BOUNCER_MBEDTLS_H
#define BOUNCER_MBEDTLS_H

#include <psa/crypto.h>

#include "bouncer_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The device's private key, P-256, which the application has imported or made, or which is in a secure element. */
typedef struct bouncer_mbedtls_key {
    psa_key_id_t id;
    /* Of the key's policy: PSA_ALG_ECDSA(PSA_ALG_SHA_256) or PSA_ALG_DETERMINISTIC_ECDSA(PSA_ALG_SHA_256). */
    psa_algorithm_t algorithm;
} bouncer_mbedtls_key;

/*
 * Sets the three functions. key may be NULL for a device with a secret, and is otherwise kept. mbedTLS has HMAC-SHA256 and
 * P-256 here; Ed25519 is BOUNCER_UNSUPPORTED. The functions import a secret or public key for each call and destroy it again.
 */
void bouncer_mbedtls(bouncer_crypto *crypto, const bouncer_mbedtls_key *key);

#ifdef __cplusplus
}
#endif

#endif
