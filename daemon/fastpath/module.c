/* unplugd.sockets._fastpath: constants answered and log bytes appended without entering Python.
 *
 * A Table (table.c) has a guest's rows and its log text (log.c). A Poller (loop.c) stands in the place of select.epoll in the
 * event loop's selector and answers what comes on connections (connection.c) and lent pages (page.c) by the tables. What has
 * no row is Python's. sockets/poller.py and core/table.py do the same in Python, and the tests hold both to the same.
 *
 * SPDX-License-Identifier: MIT
 */
#include "loop.h"

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "unplugd.sockets._fastpath",
    .m_doc = "Answers constants and appends log bytes without entering Python.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
    PyObject *self = PyModule_Create(&module);

    if (self != NULL && (PyModule_AddType(self, &RowsType) < 0 || PyModule_AddType(self, &TableType) < 0 ||
                         PyModule_AddType(self, &PollerType) < 0 ||
                         PyModule_AddIntConstant(self, "READ_SIZE", READ_SIZE) < 0 ||
                         PyModule_AddIntConstant(self, "PAYLOAD_LIMIT", PAYLOAD_LIMIT) < 0))
        Py_CLEAR(self);
    return self;
}
