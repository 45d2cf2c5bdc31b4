/* The broker's functions have no locks: they are for its own thread. Libraries for tests (-tags faultinject) end with
 * SIGABRT where one is called on another. */

#ifndef BOUNCER_THREAD_H
#define BOUNCER_THREAD_H

#ifdef BOUNCER_CHECK_THREAD

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static inline void must_be_on(pthread_t broker, const char *function)
{
	if(pthread_equal(pthread_self(), broker)) return;
	fprintf(stderr, "bouncer: the broker's function %s was called off the broker's thread\n", function);
	abort();
}

#else

#define must_be_on(broker, function) ((void)0)

#endif
#endif
