/* The broker's side of the boundary: its structures are flattened here and its functions called from here. Every
 * decision is made in Go. Facts about the broker's behaviour are in docs/broker.md. */

#define _GNU_SOURCE
#include "plugin.h"
#include "bystander.h"
#include "certificate.h"
#include "properties.h"
#include "signals.h"
#include "thread.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include <mosquitto.h>
#include <mosquitto_broker.h>
#include <mosquitto_plugin.h>

#include "_cgo_export.h"

/* Error code of 2.1: as if this plugin had not been asked. The 2.0 headers do not have it. */
#define PLUGIN_IGNORE 32

/* Events of 2.1: a client has connected; the connection of one has ended whose session stays. Their structures begin like
 * that of a disconnection. */
#define EVT_CONNECT 11
#define EVT_CLIENT_OFFLINE 28

/* Where swallowed messages go, or to as much of it as the topic that it replaces has bytes. No client can subscribe to it by
 * a wildcard, and access to it is denied by name. */
static const char sink[] = "$bouncer/redelivered";

/* The broker's only thread, the one that loads the plugin. */
static pthread_t broker_thread;

/* The answer to questions of access that are not the gateway's concern. */
static int not_concerned = MOSQ_ERR_PLUGIN_DEFER;

/* The publish that was looked at last in an access check, if that was the event before this one: the certificate need
 * not be looked at again. */
static struct {
	struct mosquitto *client;
	const void *topic;
	struct bouncer_identity identity;
} looked_at;

/* See bouncer_set_strangers. */
static int strangers = BOUNCER_STRANGERS_ANY;

/* Whether Go may have a message in hand of which it cannot tell yet whether it is a last will: see Gateway.Access. */
static bool unsettled;

/* Whether the broker ticks at all. */
static bool ticks;

static size_t length(const char *s)
{
	return s ? strlen(s) : 0;
}

static void on_any_event(void)
{
	static bool rearmed = false;

	if(rearmed) return;
	rearmed = true;
	bouncer_rearm_signals();
}

static void fill(struct bouncer_publish *publish, struct mosquitto *client, const char *topic, const void *payload,
		uint32_t payload_len, int qos, bool retain)
{
	const char *id = mosquitto_client_id(client);
	const char *username = mosquitto_client_username(client);

	*publish = (struct bouncer_publish){
		.connection = client,
		.identity = username,
		.identity_len = length(username),
		.client_id = id,
		.client_id_len = length(id),
		.topic = topic,
		.topic_len = length(topic),
		.payload = payload,
		.payload_len = payload ? payload_len : 0,
		.qos = qos,
		.retain = retain,
	};
}

static void identify(struct bouncer_publish *publish, struct bouncer_identity identity)
{
	publish->presented = identity.presented;
	publish->common_name = identity.common_name;
	publish->common_name_len = identity.common_name_len;
	publish->certified = identity.certified;
	publish->other_issuer = identity.other_issuer;
}

static bool is_sink(const char *topic)
{
	size_t len = length(topic);
	return len > 0 && len < sizeof(sink) && memcmp(topic, sink, len) == 0;
}

/* Has a message acknowledged and not delivered. Every copy of a message is changed alike, so that the broker knows two
 * at QoS 2 for the same. The topic is overwritten where it lies: before 2.0.15 the broker does not free one that is
 * replaced, later it frees it itself. */
static int swallow(struct mosquitto_evt_message *message)
{
	size_t len = length(message->topic);

	if(len >= sizeof(sink)) len = sizeof(sink) - 1;
	memcpy(message->topic, sink, len);
	message->topic[len] = '\0';
	message->retain = false;
	return MOSQ_ERR_SUCCESS;
}

/* Has the broker publish a copy of a message in its next round, with the message's properties, and the message itself
 * acknowledged. The message has been accepted: that its subscribers miss it does not change that. */
static int relay(struct mosquitto_evt_message *message)
{
	mosquitto_property *list = NULL;

	must_be_on(broker_thread, "relay");
	int rc = MOSQ_ERR_NOMEM;
	void *copy = mosquitto_malloc((size_t)message->payloadlen + 1);
	if(copy){
		if(message->payloadlen > 0) memcpy(copy, message->payload, message->payloadlen);
		rc = bouncer_copy_properties(&list, message->properties);
	}
	if(rc == MOSQ_ERR_SUCCESS){
		rc = mosquitto_broker_publish(NULL, message->topic, (int)message->payloadlen, copy, message->qos, message->retain, list);
	}
	if(rc != MOSQ_ERR_SUCCESS){
		mosquitto_free(copy);
		if(list) mosquitto_property_free_all(&list);
		bouncer_relay_failed(rc);
	}
	return swallow(message);
}

static int on_message(int event, void *event_data, void *userdata)
{
	struct mosquitto_evt_message *message = event_data;
	struct bouncer_publish publish;

	on_any_event();
	if(!bouncer_may_concern(message->topic)){
		looked_at.client = NULL;
		return MOSQ_ERR_SUCCESS;
	}
	fill(&publish, message->client, message->topic, message->payload, message->payloadlen, message->qos,
			message->retain);
	publish.properties = message->properties;
	publish.properties_size = bouncer_properties_size(message->properties);
	bool checked = looked_at.client == message->client && looked_at.topic == message->topic;
	identify(&publish, checked ? looked_at.identity : bouncer_identify(message->client, publish.identity));
	looked_at.client = NULL;
	struct bouncer_request request;
	bouncer_read_request(message->properties, &request);
	publish.correlation = request.correlation;
	publish.correlation_len = request.correlation_len;
	publish.response_topic = request.response_topic;
	publish.response_topic_len = length(request.response_topic);
	int outcome = bouncer_message(&publish);
	bouncer_free_request(&request);
	if(checked) unsettled = false;
	switch(outcome){
		case BOUNCER_ROUTE: return MOSQ_ERR_SUCCESS;
		case BOUNCER_SWALLOW: return swallow(message);
		case BOUNCER_RELAY: return relay(message);
		default: return MOSQ_ERR_ACL_DENIED;
	}
}

static int allow_certified(struct mosquitto *client)
{
	struct bouncer_identity identity = bouncer_identify(client, mosquitto_client_username(client));

	if(!identity.certified) return not_concerned;
	return identity.other_issuer ? MOSQ_ERR_ACL_DENIED : MOSQ_ERR_SUCCESS;
}

static int decided(int decision, struct mosquitto *client)
{
	switch(decision){
		case BOUNCER_ALLOW_CERTIFIED: return allow_certified(client);
		case BOUNCER_ALLOW: return MOSQ_ERR_SUCCESS;
		case BOUNCER_NOT_CONCERNED: return not_concerned;
		default: return MOSQ_ERR_ACL_DENIED;
	}
}

/* Whether a client is known to be no device and its wish to be none of the gateway's concern, without asking Go. */
static bool is_bystander(const struct mosquitto_evt_acl_check *check)
{
	if(!check->topic || strangers == BOUNCER_STRANGERS_BY_CERTIFICATE) return false;
	const char *username = mosquitto_client_username(check->client);
	if(strangers != BOUNCER_STRANGERS_ANY && length(username) == 0) return false;
	switch(check->access){
		case MOSQ_ACL_READ:
			/* Of a gated topic Go has to see last wills and what is empty, and what is retained of the gateway's own too. */
			return (!bouncer_may_be_gated(check->topic) || (!unsettled && check->payloadlen > 0))
					&& (!check->retain || !bouncer_may_concern(check->topic))
					&& !bouncer_is_question(check->payload, check->payloadlen)
					&& bouncer_is_bystander(username, mosquitto_client_id(check->client));
		case MOSQ_ACL_WRITE:
			/* Go finishes what is pending, and where the broker never ticks, gives it what waits for it. */
			return ticks && !unsettled && !bouncer_may_concern(check->topic)
					&& bouncer_is_bystander(username, mosquitto_client_id(check->client));
		default:
			return false;
	}
}

static int on_access(int event, void *event_data, void *userdata)
{
	struct mosquitto_evt_acl_check *check = event_data;
	struct bouncer_publish publish;

	/* 2.1 asks from the thread of its HTTP listener too, which no client causes. */
	if(!pthread_equal(pthread_self(), broker_thread)) return not_concerned;
	on_any_event();
	looked_at.client = NULL;
	if(is_sink(check->topic)) return MOSQ_ERR_ACL_DENIED;
	if(is_bystander(check)) return not_concerned;
	uint64_t changes = __atomic_load_n(&bouncer_device_changes, __ATOMIC_ACQUIRE);
	fill(&publish, check->client, check->topic, check->payload, check->payloadlen, check->qos, check->retain);
	if(check->access != MOSQ_ACL_WRITE){
		if(check->access != MOSQ_ACL_READ || strangers == BOUNCER_STRANGERS_BY_CERTIFICATE){
			identify(&publish, bouncer_identify(check->client, publish.identity));
		}
		if(check->access != MOSQ_ACL_READ){
			publish.subscriptions = mosquitto_client_sub_count(check->client);
		}
		int decision = bouncer_access(check->access, &publish);
		/* Go is not concerned with what a client reads only if the client is no device. */
		if(check->access == MOSQ_ACL_READ && decision == BOUNCER_NOT_CONCERNED){
			bouncer_note_bystander(publish.identity, publish.client_id, changes);
		}
		return decided(decision, check->client);
	}

	/* No client at all, but the broker asking whether it may still serve a retained message. */
	if(mosquitto_client_protocol_version(check->client) == 0 && !mosquitto_client_address(check->client)){
		return decided(bouncer_retained(&publish), check->client);
	}
	looked_at.client = check->client;
	looked_at.topic = check->topic;
	looked_at.identity = bouncer_identify(check->client, publish.identity);
	identify(&publish, looked_at.identity);
	int decision = bouncer_access(check->access, &publish);
	unsettled = decision != BOUNCER_DENY && bouncer_may_be_gated(check->topic);
	/* Nor with what a client writes elsewhere. */
	if(decision == BOUNCER_NOT_CONCERNED) bouncer_note_bystander(publish.identity, publish.client_id, changes);
	return decided(decision, check->client);
}

/* What happens to the session of a client whose connection ends. Of an MQTT 5 client 2.0 shows no plugin what it asked for. */
static int session_end(int event, struct mosquitto *client)
{
	if(event == EVT_CLIENT_OFFLINE) return BOUNCER_SESSION_STAYS;
	if(bouncer_broker_is_2_1()) return BOUNCER_SESSION_ENDS;
	if(mosquitto_client_protocol_version(client) == 5) return BOUNCER_SESSION_MAY_STAY;
	return mosquitto_client_clean_session(client) ? BOUNCER_SESSION_ENDS : BOUNCER_SESSION_STAYS;
}

static int on_disconnect(int event, void *event_data, void *userdata)
{
	struct mosquitto_evt_disconnect *disconnect = event_data;
	struct bouncer_publish publish;

	on_any_event();
	looked_at.client = NULL;
	fill(&publish, disconnect->client, NULL, NULL, 0, 0, false);
	if(publish.client_id) bouncer_disconnected(&publish, session_end(event, disconnect->client));
	return MOSQ_ERR_SUCCESS;
}

static int on_connect(int event, void *event_data, void *userdata)
{
	struct mosquitto_evt_disconnect *connect = event_data; /* as far as the client */
	struct bouncer_publish publish;

	on_any_event();
	looked_at.client = NULL;
	fill(&publish, connect->client, NULL, NULL, 0, 0, false);
	identify(&publish, bouncer_identify(connect->client, publish.identity));
	if(publish.client_id) bouncer_connected(&publish);
	return MOSQ_ERR_SUCCESS;
}

static int on_tick(int event, void *event_data, void *userdata)
{
	on_any_event();
	looked_at.client = NULL;
	ticks = true;
	bouncer_release_signals();
	bouncer_tick();
	unsettled = false;
	return MOSQ_ERR_SUCCESS;
}

static int on_reload(int event, void *event_data, void *userdata)
{
	on_any_event();
	bouncer_reload();
	return MOSQ_ERR_SUCCESS; /* 2.1 ends on anything else, 2.0 leaves its access lists out */
}

void bouncer_set_others(int others)
{
	switch(others){
		case BOUNCER_OTHERS_ALLOW: not_concerned = MOSQ_ERR_SUCCESS; break;
		case BOUNCER_OTHERS_IGNORE: not_concerned = PLUGIN_IGNORE; break;
		default: not_concerned = MOSQ_ERR_PLUGIN_DEFER; break;
	}
}

void bouncer_set_strangers(int by)
{
	strangers = by;
}

bool bouncer_broker_is_2_1(void)
{
	return dlsym(RTLD_DEFAULT, "mosquitto_plugin_set_info") != NULL;
}

void bouncer_kick(const char *client_id)
{
	must_be_on(broker_thread, "kick");
	mosquitto_kick_client_by_clientid(client_id, false);
}

void bouncer_kick_user(const char *username)
{
	must_be_on(broker_thread, "kick user");
	mosquitto_kick_client_by_username(username, false);
}

bool bouncer_fingerprint(uintptr_t connection, unsigned char *sum)
{
	must_be_on(broker_thread, "certificate");
	return bouncer_certificate_sum((struct mosquitto *)connection, sum);
}

void bouncer_log(int level, const char *line)
{
	must_be_on(broker_thread, "log");
	mosquitto_log_printf(level, "bouncer: %s", line);
}

int bouncer_publish_to(const char *topic, const void *payload, int payload_len, int qos, bool retain,
		const struct bouncer_properties *properties)
{
	mosquitto_property *list;

	must_be_on(broker_thread, "publish");
	/* mosquitto_broker_publish_copy would copy for us, but upsets the broker's memory counter before 2.1. */
	void *copy = mosquitto_malloc((size_t)payload_len + 1);
	if(!copy) return MOSQ_ERR_NOMEM;
	if(payload_len > 0) memcpy(copy, payload, (size_t)payload_len);
	int rc = bouncer_make_properties(&list, properties);
	if(rc == MOSQ_ERR_SUCCESS) rc = mosquitto_broker_publish(NULL, topic, payload_len, copy, qos, retain, list);
	if(rc != MOSQ_ERR_SUCCESS){
		mosquitto_free(copy);
		if(list) mosquitto_property_free_all(&list);
	}
	return rc;
}

void bouncer_wake(void)
{
	pthread_kill(broker_thread, SIGURG);
}

bool bouncer_ticks_with_listener_settings(void)
{
	int (*library_version)(int *, int *, int *) = NULL;
	int major = 0, minor = 0, patch = 0;

	if(bouncer_broker_is_2_1()) return true;
	void *library = dlopen("libmosquitto.so.1", RTLD_NOW | RTLD_LOCAL); /* of the same package, and so of the same version */
	if(!library) return false;
	void *symbol = dlsym(library, "mosquitto_lib_version");
	memcpy(&library_version, &symbol, sizeof(symbol)); /* ISO C has no cast for it */
	if(library_version) library_version(&major, &minor, &patch);
	dlclose(library);
	return major*1000000 + minor*1000 + patch >= 2000015;
}

int mosquitto_plugin_version(int supported_version_count, const int *supported_versions)
{
	for(int i = 0; i < supported_version_count; i++){
		if(supported_versions[i] == 5) return 5;
	}
	bouncer_release_signals();
	return -1;
}

#include "timed.h"

static int register_callbacks(mosquitto_plugin_id_t *identifier)
{
	const struct {
		int event;
		MOSQ_FUNC_generic_callback callback;
	} callbacks[] = {
		{MOSQ_EVT_ACL_CHECK, on_access},
		{MOSQ_EVT_MESSAGE, on_message},
		{MOSQ_EVT_DISCONNECT, on_disconnect},
		{MOSQ_EVT_TICK, on_tick},
		{MOSQ_EVT_RELOAD, on_reload},
		/* from 2.1 on */
		{EVT_CONNECT, on_connect},
		{EVT_CLIENT_OFFLINE, on_disconnect},
	};
	size_t count = sizeof(callbacks)/sizeof(callbacks[0]) - (bouncer_broker_is_2_1() ? 0 : 2);

	for(size_t i = 0; i < count; i++){
		int rc = mosquitto_callback_register(identifier, callbacks[i].event, callbacks[i].callback, NULL, NULL);
		if(rc != MOSQ_ERR_SUCCESS){
			mosquitto_log_printf(MOSQ_LOG_ERR, "bouncer: the broker did not register the callback for event %d "
					"(error %d)", callbacks[i].event, rc);
			return rc;
		}
	}
	return MOSQ_ERR_SUCCESS;
}

static int start(mosquitto_plugin_id_t *identifier, void **userdata, struct mosquitto_opt *options, int option_count)
{
	const char *config_file = NULL;

	broker_thread = pthread_self();
	*userdata = NULL;
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
	int rc = register_callbacks(identifier);
	if(rc != MOSQ_ERR_SUCCESS){
		bouncer_stop();
		return rc;
	}
	*userdata = &broker_thread; /* anything but NULL: 2.1 calls the clean-up after a failed start too */
	return MOSQ_ERR_SUCCESS;
}

int mosquitto_plugin_init(mosquitto_plugin_id_t *identifier, void **userdata, struct mosquitto_opt *options, int option_count)
{
	int rc = start(identifier, userdata, options, option_count);

	if(rc != MOSQ_ERR_SUCCESS) bouncer_release_signals(); /* the broker ends, and no tick comes */
	return rc;
}

int mosquitto_plugin_cleanup(void *userdata, struct mosquitto_opt *options, int option_count)
{
	timed_report();
	if(userdata) bouncer_stop();
	return MOSQ_ERR_SUCCESS;
}
