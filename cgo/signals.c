#define _GNU_SOURCE
#include "signals.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

/* The mask of the thread that loaded the library, as it was before. */
static sigset_t mask_before;
static bool blocked, released;

static void stop_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
}

/* The broker installs its handlers after it has loaded plugins, opens its ports about then, and says that it runs last of
 * all: a signal in between is handled and forgotten. What comes before the first tick waits for it instead.
 *
 * The priority has this run before the runtime of Go starts in the same library: its threads take over the mask that they
 * find, and so never take such a signal from the broker's own thread. */
__attribute__((constructor(101))) static void block_signals(void)
{
	sigset_t set;

	stop_signals(&set);
	blocked = pthread_sigmask(SIG_BLOCK, &set, &mask_before) == 0;
}

void bouncer_release_signals(void)
{
	sigset_t set;

	if(!blocked || __atomic_load_n(&released, __ATOMIC_ACQUIRE) || __atomic_exchange_n(&released, true, __ATOMIC_ACQ_REL)) return;
	stop_signals(&set);
	/* What the broker itself had blocked before stays so. */
	if(sigismember(&mask_before, SIGTERM)) sigdelset(&set, SIGTERM);
	if(sigismember(&mask_before, SIGINT)) sigdelset(&set, SIGINT);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

bool bouncer_release_signals_late(void)
{
	struct sigaction action;
	sigset_t set;

	if(!blocked || sigaction(SIGTERM, NULL, &action) != 0 || action.sa_handler == SIG_DFL) return false;
	if(__atomic_exchange_n(&released, true, __ATOMIC_ACQ_REL)) return false;
	bouncer_rearm_signals();
	stop_signals(&set);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return true;
}

/* The broker installs its signal handlers after it has loaded the plugin, without SA_ONSTACK. Where such a handler runs on
 * a thread of Go's, it runs on a goroutine's small stack and overflows it. The same handlers are installed again with
 * the flag. */
void bouncer_rearm_signals(void)
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
