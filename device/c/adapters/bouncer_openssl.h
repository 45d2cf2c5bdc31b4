/* The cryptography of bouncer_device by OpenSSL 3. */
#ifndef BOUNCER_OPENSSL_H
#define BOUNCER_OPENSSL_H

#include <openssl/evp.h>

#include "bouncer_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Sets the three functions; all algorithms are there. private_key may be NULL for a device with a secret, and is otherwise kept
 * and not freed: from a file, or from a provider or engine for a TPM or secure element. Verifying with Ed25519 allocates
 * as many bytes as are signed, for it needs them in one piece.
 */
void bouncer_openssl(bouncer_crypto *crypto, EVP_PKEY *private_key);

/*
 * Takes the bytes out of a public key, such as PEM_read_PUBKEY returns. key->data is buffer then. Returns 0, or -1 if it is
 * neither Ed25519 nor P-256.
 */
int bouncer_openssl_key(EVP_PKEY *public_key, bouncer_key *key, uint8_t buffer[65]);

#ifdef __cplusplus
}
#endif

#endif
