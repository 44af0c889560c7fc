"""What pyproject.toml cannot say with Debian 12's setuptools: the optional compiled part.

Without a compiler the installation succeeds all the same, and unplugd is slower (docs/performance.md).
"""

from setuptools import Extension, setup

PARTS = ("module", "loop", "page", "connection", "table", "log")
HEADERS = ("loop", "page", "connection", "poller", "table", "log", "frame")

setup(
    ext_modules=[
        Extension(
            "unplugd.sockets._fastpath",
            [f"daemon/fastpath/{name}.c" for name in PARTS],
            depends=[f"daemon/fastpath/{name}.h" for name in HEADERS],
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-D_FORTIFY_SOURCE=3"],
            optional=True,
        ),
    ]
)
