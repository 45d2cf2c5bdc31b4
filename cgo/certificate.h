/* What the certificates of clients say. Broker's thread only. */

#ifndef BOUNCER_CERTIFICATE_H
#define BOUNCER_CERTIFICATE_H

#include <stdbool.h>
#include <stddef.h>

struct mosquitto;

/* What a client's certificate vouches for. */
struct bouncer_identity {
	bool presented;    /* it presented one */
	const unsigned char *common_name; /* its first common name, until the next is looked at; NULL: none that is text */
	size_t common_name_len;
	bool certified;    /* it presented one, whose first common name is its user name, byte for byte */
	bool other_issuer; /* and none of the issuers has signed it, though there are some */
};
struct bouncer_identity bouncer_identify(struct mosquitto *client, const char *username);

/* Puts the SHA-256 of the client's certificate into sum, 32 bytes; false: it presented none. */
bool bouncer_certificate_sum(struct mosquitto *client, unsigned char *sum);

/* Replaces the certificates of CAs whose signature makes a certificate a device's; with none of them any certificate does.
 * Between begin and end each is given as DER; end takes them over. When add returns false, or end is not called, those that
 * were set before stay. */
void bouncer_issuers_begin(void);
bool bouncer_issuers_add(const void *der, size_t len);
void bouncer_issuers_end(void);

#endif
