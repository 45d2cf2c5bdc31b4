#include "adapter.h"

#include "bouncer_wolfssl.h"

const char adapter_name[] = "wolfSSL";

static WC_RNG generator;
static ecc_key ecc;
static ed25519_key ed25519;
static bouncer_wolfssl_key opened;

int adapter_has(bouncer_algorithm algorithm)
{
    (void)algorithm;
    return 1;
}

int adapter_open(bouncer_crypto *crypto, bouncer_algorithm algorithm, const uint8_t *private_key, const uint8_t *public_key)
{
    bouncer_wolfssl(crypto, NULL);
    if (wc_InitRng(&generator) != 0 || wc_ecc_init(&ecc) != 0 || wc_ed25519_init(&ed25519) != 0)
        return -1;
    opened.random = &generator;
    opened.ecc = NULL;
    opened.ed25519 = NULL;
    bouncer_wolfssl(crypto, &opened);
    if (algorithm == BOUNCER_ECDSA_P256) {
        opened.ecc = &ecc;
        if (wc_ecc_import_private_key_ex(private_key, 32, public_key, 65, &ecc, ECC_SECP256R1) != 0)
            return -1;
#ifdef ECC_TIMING_RESISTANT
        if (wc_ecc_set_rng(&ecc, &generator) != 0)
            return -1;
#endif
    } else if (algorithm == BOUNCER_ED25519) {
        opened.ed25519 = &ed25519;
        if (wc_ed25519_import_private_key(private_key, 32, public_key, 32, &ed25519) != 0)
            return -1;
    }
    return 0;
}

void adapter_close(void)
{
    wc_ecc_free(&ecc);
    wc_ed25519_free(&ed25519);
    wc_FreeRng(&generator);
}
