/* The Poller type: waits in place of the event loop's epoll.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_LOOP_H
#define UNPLUGD_LOOP_H

#include "page.h"

extern PyTypeObject PollerType;

#endif
