/* How long the callbacks take, from C entry to return: for measurements (-tags timed), else nothing. */

#ifndef BOUNCER_TIMED_H
#define BOUNCER_TIMED_H

#ifdef BOUNCER_TIMED

#include <stdint.h>
#include <time.h>

#include <mosquitto.h>
#include <mosquitto_broker.h>
#include <mosquitto_plugin.h>

/* Nanoseconds are counted in buckets, 16 for each power of two. */
#define BUCKETS (16*40)

struct timing {
	const char *what;
	uint64_t count, sum;
	uint32_t bucket[BUCKETS];
};
static struct timing timed_read = {.what = "read"}, timed_write = {.what = "write"}, timed_message = {.what = "message"},
		timed_publish = {.what = "publish"}; /* the write and the message of one publish together */
static uint64_t last_write;

static uint64_t timed_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void timed_add(struct timing *t, uint64_t ns)
{
	unsigned octave = 63 - (unsigned)__builtin_clzll(ns | 16);
	unsigned at = octave*16 + (unsigned)(ns >> (octave - 4) & 15);

	t->count++;
	t->sum += ns;
	t->bucket[at < BUCKETS ? at : BUCKETS - 1]++;
}

static uint64_t timed_percentile(const struct timing *t, double p)
{
	uint64_t seen = 0;

	for(unsigned i = 0; i < BUCKETS; i++){
		seen += t->bucket[i];
		if(seen > 0 && (double)seen >= p*(double)t->count/100) return (uint64_t)(16 + i%16) << (i/16 >= 4 ? i/16 - 4 : 0);
	}
	return 0;
}

static void timed_report(void)
{
	struct timing *all[] = {&timed_read, &timed_write, &timed_message, &timed_publish};

	for(unsigned i = 0; i < 4; i++){
		struct timing *t = all[i];
		if(t->count == 0) continue;
		mosquitto_log_printf(MOSQ_LOG_NOTICE, "bouncer: timed callback=%s count=%llu p10=%lluns p50=%lluns p90=%lluns "
				"p99=%lluns p99.9=%lluns mean=%lluns", t->what, (unsigned long long)t->count,
				(unsigned long long)timed_percentile(t, 10), (unsigned long long)timed_percentile(t, 50),
				(unsigned long long)timed_percentile(t, 90), (unsigned long long)timed_percentile(t, 99),
				(unsigned long long)timed_percentile(t, 99.9), (unsigned long long)(t->sum/t->count));
	}
}

static int timed_on_access(int event, void *event_data, void *userdata)
{
	const struct mosquitto_evt_acl_check *check = event_data;
	int access = check->access;
	uint64_t begin = timed_now();
	int rc = on_access(event, event_data, userdata);
	uint64_t ns = timed_now() - begin;

	if(access == MOSQ_ACL_READ) timed_add(&timed_read, ns);
	if(access == MOSQ_ACL_WRITE) timed_add(&timed_write, last_write = ns);
	return rc;
}

static int timed_on_message(int event, void *event_data, void *userdata)
{
	uint64_t begin = timed_now();
	int rc = on_message(event, event_data, userdata);
	uint64_t ns = timed_now() - begin;

	timed_add(&timed_message, ns);
	timed_add(&timed_publish, last_write + ns);
	return rc;
}

#define on_access timed_on_access
#define on_message timed_on_message

#else

static inline void timed_report(void) {}

#endif
#endif
