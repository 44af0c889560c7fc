/* A domain's ioreq page, lent by unplugd-attach.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef UNPLUGD_PAGE_H
#define UNPLUGD_PAGE_H

#include "connection.h"

/* Events came: answer the accesses, or give them to the lender. */
void page_serve(Poller *self, int events);

/* Give the page back. */
void page_close(Poller *self, int events);

PyObject *Poller_borrow(Poller *self, PyObject *args);
PyObject *Poller_give_back(Poller *self, PyObject *arg);

#endif
