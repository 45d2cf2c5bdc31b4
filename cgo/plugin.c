/* The broker's side of the boundary: its structures are flattened here and its functions called from here. Every
 * decision is made in Go. Facts about the broker's behaviour are in docs/broker.md. */

#define _GNU_SOURCE
#include "plugin.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#include <mosquitto.h>
#include <mosquitto_broker.h>
#include <mosquitto_plugin.h>
#include <openssl/x509.h>

#include "_cgo_export.h"

/* The broker's only thread, the one that loads the plugin. */
static pthread_t broker_thread;

static size_t length(const char *s)
{
	return s ? strlen(s) : 0;
}

/* Whether the client presented a certificate whose first common name is its user name, byte for byte. The broker takes
 * the user name from there when use_identity_as_username is set; when it is not, the name is the client's own word. */
static bool certified(struct mosquitto *client, const char *username)
{
	bool same = false;

	if(!username) return false;
	X509 *certificate = mosquitto_client_certificate(client);
	if(!certificate) return false;
	X509_NAME *subject = X509_get_subject_name(certificate);
	int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
	if(at >= 0){
		const ASN1_STRING *name = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
		size_t len = strlen(username);
		same = name && (size_t)ASN1_STRING_length(name) == len
				&& memcmp(ASN1_STRING_get0_data(name), username, len) == 0;
	}
	X509_free(certificate); /* the broker gave a reference of its own */
	return same;
}

/* The broker installs its signal handlers after it has loaded plugins, without SA_ONSTACK. Where such a handler runs on
 * a thread of Go's, it runs on a goroutine's small stack and overflows it. The same handlers are installed again with
 * the flag. */
static void rearm_signals(void)
{
	const int signals[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGRTMIN};

	for(size_t i = 0; i < sizeof(signals)/sizeof(signals[0]); i++){
		struct sigaction action;
		if(sigaction(signals[i], NULL, &action) != 0) continue;
		if(action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) continue;
		if(action.sa_flags & SA_ONSTACK) continue;
		action.sa_flags |= SA_ONSTACK;
		sigaction(signals[i], &action, NULL);
	}
}

static void on_any_event(void)
{
	static bool rearmed = false;

	if(rearmed) return;
	rearmed = true;
	rearm_signals();
}

static int on_message(int event, void *event_data, void *userdata)
{
	struct mosquitto_evt_message *message = event_data;
	struct mosquitto *client = message->client;

	on_any_event();
	const char *id = mosquitto_client_id(client);
	const char *username = mosquitto_client_username(client);
	struct bouncer_publish publish = {
		.identity = username,
		.identity_len = length(username),
		.client_id = id,
		.client_id_len = length(id),
		.topic = message->topic,
		.topic_len = length(message->topic),
		.payload = message->payload,
		.payload_len = message->payload ? message->payloadlen : 0,
		.certified = certified(client, username),
	};
	return bouncer_message(&publish) == 1 ? MOSQ_ERR_SUCCESS : MOSQ_ERR_ACL_DENIED;
}

static int on_tick(int event, void *event_data, void *userdata)
{
	on_any_event();
	bouncer_tick();
	return MOSQ_ERR_SUCCESS;
}

void bouncer_log(int level, const char *line)
{
	mosquitto_log_printf(level, "bouncer: %s", line);
}

int bouncer_publish_to(const char *topic, const void *payload, int payload_len, int qos)
{
	/* mosquitto_broker_publish_copy would copy for us, but upsets the broker's memory counter before 2.1. */
	void *copy = mosquitto_malloc((size_t)payload_len + 1);
	if(!copy) return MOSQ_ERR_NOMEM;
	memcpy(copy, payload, (size_t)payload_len);
	int rc = mosquitto_broker_publish(NULL, topic, payload_len, copy, qos, false, NULL);
	if(rc != MOSQ_ERR_SUCCESS) mosquitto_free(copy);
	return rc;
}

void bouncer_wake(void)
{
	pthread_kill(broker_thread, SIGURG);
}

int mosquitto_plugin_version(int supported_version_count, const int *supported_versions)
{
	for(int i = 0; i < supported_version_count; i++){
		if(supported_versions[i] == 5) return 5;
	}
	return -1;
}

int mosquitto_plugin_init(mosquitto_plugin_id_t *identifier, void **userdata, struct mosquitto_opt *options, int option_count)
{
	const char *config_file = NULL;

	broker_thread = pthread_self();
	for(int i = 0; i < option_count; i++){
		if(strcmp(options[i].key, "config_file") == 0 && !config_file){
			config_file = options[i].value;
		}else{
			mosquitto_log_printf(MOSQ_LOG_ERR, "bouncer: plugin_opt_%s is unknown or given twice; the one option is "
					"plugin_opt_config_file, everything else is set in that file", options[i].key);
			return MOSQ_ERR_INVAL;
		}
	}
	if(!config_file){
		mosquitto_log_printf(MOSQ_LOG_ERR, "bouncer: plugin_opt_config_file is missing; add the line "
				"\"plugin_opt_config_file /etc/mosquitto-bouncer/bouncer.toml\" below the plugin line");
		return MOSQ_ERR_INVAL;
	}
	if(bouncer_start((char *)config_file) != 1) return MOSQ_ERR_INVAL;
	int rc = mosquitto_callback_register(identifier, MOSQ_EVT_MESSAGE, on_message, NULL, NULL);
	if(rc == MOSQ_ERR_SUCCESS) rc = mosquitto_callback_register(identifier, MOSQ_EVT_TICK, on_tick, NULL, NULL);
	if(rc != MOSQ_ERR_SUCCESS){
		mosquitto_log_printf(MOSQ_LOG_ERR, "bouncer: the broker did not register the callbacks (MOSQ_ERR_* %d)", rc);
		bouncer_stop();
	}
	return rc;
}

int mosquitto_plugin_cleanup(void *userdata, struct mosquitto_opt *options, int option_count)
{
	bouncer_stop();
	return MOSQ_ERR_SUCCESS;
}
