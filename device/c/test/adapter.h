/* What the test program needs of an adapter; one of adapter_*.c is linked. */
#ifndef ADAPTER_H
#define ADAPTER_H

#include "bouncer_device.h"

extern const char adapter_name[];

/* Whether the adapter has the algorithm. */
int adapter_has(bouncer_algorithm algorithm);

/*
 * Sets the functions for a device. private_key is 32 bytes, the seed of Ed25519 or the number of P-256, and public_key 32 or
 * 65; both are NULL for a secret. Returns 0, or -1. adapter_close frees what the last adapter_open made.
 */
int adapter_open(bouncer_crypto *crypto, bouncer_algorithm algorithm, const uint8_t *private_key, const uint8_t *public_key);
void adapter_close(void);

#endif
