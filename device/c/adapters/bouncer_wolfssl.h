/* The cryptography of bouncer_device by wolfSSL's wolfCrypt. */
#ifndef BOUNCER_WOLFSSL_H
#define BOUNCER_WOLFSSL_H

#ifdef WOLFSSL_USER_SETTINGS
#include <wolfssl/wolfcrypt/settings.h>
#else
#include <wolfssl/options.h>
#endif
#include <wolfssl/wolfcrypt/ecc.h>
#include <wolfssl/wolfcrypt/ed25519.h>
#include <wolfssl/wolfcrypt/random.h>

#include "bouncer_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The device's private key: one of the two, and NULL for the other. Only P-256 needs the random generator. */
typedef struct bouncer_wolfssl_key {
    ecc_key *ecc;
#ifdef HAVE_ED25519
    ed25519_key *ed25519; /* with its public key set */
#endif
    WC_RNG *random;
} bouncer_wolfssl_key;

/*
 * Sets the three functions. key may be NULL for a device with a secret, and is otherwise kept. HMAC-SHA256 and P-256 need
 * wolfSSL with HAVE_ECC; Ed25519 is BOUNCER_UNSUPPORTED if wolfSSL was built without HAVE_ED25519. Verifying with Ed25519
 * allocates as many bytes as are signed (XMALLOC), for it needs them in one piece.
 */
void bouncer_wolfssl(bouncer_crypto *crypto, bouncer_wolfssl_key *key);

#ifdef __cplusplus
}
#endif

#endif
