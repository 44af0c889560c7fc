/* A connection of a device model: read, answered, and handed to Python where a frame has no row.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_CONNECTION_H
#define UNPLUGD_CONNECTION_H

#include "poller.h"

/* Read and answer what came; what is Python's is appended to `handed`. -1 and an exception where there is no memory. */
int connection_serve(Poller *self, int fd, PyObject *handed);

/* A descriptor that Python has is ready: not to be looked at until it is resumed. */
void connection_mute(Poller *self, int fd);

/* Forget what the Poller has of a descriptor. */
void link_clear(struct link *link);

/* A link for every descriptor up to this one. -1 and an exception where there is no memory. */
int make_room(Poller *self, int fd);

PyObject *Poller_attach(Poller *self, PyObject *args);
PyObject *Poller_send(Poller *self, PyObject *args);
PyObject *Poller_resume(Poller *self, PyObject *args);
PyObject *Poller_detach(Poller *self, PyObject *arg);

#endif
