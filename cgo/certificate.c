/* The broker tells a plugin the certificate that a client presented, and nothing of the chain by which it was verified.
 * Where several listeners trust different CAs, each of those can issue a certificate in the name of any device. So the
 * signature is verified here again, with the keys of the CAs that may. */

#define _GNU_SOURCE
#include "certificate.h"

#include <string.h>

#include <mosquitto.h>
#include <mosquitto_broker.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#define MAX_ISSUERS 32

/* The CAs whose signature counts, and those that are being read. */
static struct issuers {
	X509 *certificates[MAX_ISSUERS];
	size_t count;
} issuers, next_issuers;

/* How often the issuers were replaced: what was found before is void then. */
static uint32_t generation = 1;

/* The certificates seen lately: the first common name, NULL where there is none or it is no text; the fingerprint; whether
 * an issuer has signed it. Each entry keeps its certificate, so that no other one can come to lie at the same address. */
static struct known {
	X509 *certificate;
	const unsigned char *text;
	size_t len;
	bool summed; /* the fingerprint is known; few are asked for */
	unsigned char fingerprint[32];
	uint32_t verified; /* the generation that issued is of; 0: none */
	bool issued;
} known[256];

/* What was found of certificates by their fingerprint, for clients that come again: each connection has a copy of its own.
 * Verifying a signature takes 30 to 100 us, in which no other client is served. A handshake, which the broker has made
 * before it asks, takes it several times as long. */
static struct {
	unsigned char fingerprint[32];
	uint32_t verified;
	bool issued;
} verdicts[4096];

/* Whether a name is written in one of the encodings in which its bytes are the ASCII text that they seem to be. In
 * others they spell a name that its issuer has never read. */
static bool is_text(const ASN1_STRING *name)
{
	switch(ASN1_STRING_type(name)){
		case V_ASN1_UTF8STRING:
		case V_ASN1_PRINTABLESTRING:
		case V_ASN1_IA5STRING:
		case V_ASN1_T61STRING: return true;
		default: return false;
	}
}

/* Takes over the caller's reference. */
static struct known *look_up(X509 *certificate)
{
	struct known *k = &known[((uintptr_t)certificate >> 4) * 0x9e3779b1u >> 8 & 255];

	if(k->certificate == certificate){
		X509_free(certificate);
		return k;
	}
	X509_free(k->certificate);
	*k = (struct known){.certificate = certificate};
	X509_NAME *subject = X509_get_subject_name(certificate);
	int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
	const ASN1_STRING *name = at >= 0 ? X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)) : NULL;
	if(name && is_text(name)){
		k->text = ASN1_STRING_get0_data(name);
		k->len = (size_t)ASN1_STRING_length(name);
	}
	return k;
}

static bool sum_up(struct known *k)
{
	unsigned int len = 0;

	if(k->summed) return true;
	if(!X509_digest(k->certificate, EVP_sha256(), k->fingerprint, &len) || len != sizeof(k->fingerprint)) return false;
	k->summed = true;
	return true;
}

/* Whether an issuer of the certificate's issuer name has signed it. */
static bool is_signed(X509 *certificate)
{
	for(size_t i = 0; i < issuers.count; i++){
		if(X509_NAME_cmp(X509_get_issuer_name(certificate), X509_get_subject_name(issuers.certificates[i])) != 0) continue;
		EVP_PKEY *key = X509_get0_pubkey(issuers.certificates[i]);
		if(key && X509_verify(certificate, key) == 1) return true;
	}
	return false;
}

static bool is_issued(struct known *k)
{
	size_t place;

	if(issuers.count == 0) return true;
	if(k->verified == generation) return k->issued;
	if(!sum_up(k)) return false;
	memcpy(&place, k->fingerprint, sizeof(place));
	place %= sizeof(verdicts)/sizeof(verdicts[0]);
	if(verdicts[place].verified != generation
			|| memcmp(verdicts[place].fingerprint, k->fingerprint, sizeof(k->fingerprint)) != 0){
		verdicts[place].issued = is_signed(k->certificate);
		verdicts[place].verified = generation;
		memcpy(verdicts[place].fingerprint, k->fingerprint, sizeof(k->fingerprint));
	}
	k->issued = verdicts[place].issued;
	k->verified = generation;
	return k->issued;
}

/* The broker takes the user name from the certificate when use_identity_as_username is set; when it is not, the name is the
 * client's own word. */
struct bouncer_identity bouncer_identify(struct mosquitto *client, const char *username)
{
	struct bouncer_identity identity = {0};

	X509 *certificate = mosquitto_client_certificate(client); /* a reference of our own */
	if(!certificate) return identity;
	struct known *k = look_up(certificate);
	identity.presented = true;
	identity.common_name = k->text;
	identity.common_name_len = k->text ? k->len : 0;
	if(!username) return identity;
	identity.certified = k->text && k->len == strlen(username) && memcmp(k->text, username, k->len) == 0;
	identity.other_issuer = identity.certified && !is_issued(k);
	return identity;
}

bool bouncer_certificate_sum(struct mosquitto *client, unsigned char *sum)
{
	X509 *certificate = mosquitto_client_certificate(client); /* a reference of our own */
	if(!certificate) return false;
	struct known *k = look_up(certificate);
	if(!sum_up(k)) return false;
	memcpy(sum, k->fingerprint, sizeof(k->fingerprint));
	return true;
}

static void forget(struct issuers *these)
{
	for(size_t i = 0; i < these->count; i++) X509_free(these->certificates[i]);
	*these = (struct issuers){.count = 0};
}

void bouncer_issuers_begin(void)
{
	forget(&next_issuers);
}

bool bouncer_issuers_add(const void *der, size_t len)
{
	const unsigned char *at = der;

	if(next_issuers.count == MAX_ISSUERS) return false;
	X509 *certificate = d2i_X509(NULL, &at, (long)len);
	if(!certificate) return false;
	next_issuers.certificates[next_issuers.count++] = certificate;
	return X509_get0_pubkey(certificate) != NULL;
}

void bouncer_issuers_end(void)
{
	forget(&issuers);
	issuers = next_issuers;
	next_issuers = (struct issuers){.count = 0};
	generation++;
}
