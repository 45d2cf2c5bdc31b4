/* The broker's signal handlers, and the time before it has any. */

#ifndef BOUNCER_SIGNALS_H
#define BOUNCER_SIGNALS_H

#include <stdbool.h>

/* Has the broker's signal handlers run on a stack of their own. Any thread. */
void bouncer_rearm_signals(void);

/* Lets SIGTERM and SIGINT through again, which have been blocked in every thread since the library was loaded. In the
 * broker's thread, when it ticks for the first time, or when no tick is to come. */
void bouncer_release_signals(void);

/* The same for a broker that has not ticked by now: from then on the calling thread takes these signals, and true is
 * returned. Does nothing where they have been let through, or the broker has not installed its handlers. Any thread, which
 * has to live on. */
bool bouncer_release_signals_late(void);

#endif
