"""compose.yaml, brought up by podman-compose: unplugd, Prometheus and what Grafana is given, on one network.

Prometheus is Debian's, in an image made here under the name that compose.yaml has. No Grafana can be had without its
own registry: standin_grafana.py is in its place, and asks each panel's query from there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.prometheus import binary
from tests.packaging.conftest import DEBIAN
from tests.packaging.engine import Engine
from tests.packaging.tree import ROOT

COMPOSE = ROOT / "compose.yaml"
OVERRIDE = """
services:
  unplugd:
    build:
      args: {{BASE: {base}}}
    ulimits: {{nofile: 4096, nproc: 4096}}
  prometheus:
    ulimits: {{nofile: 4096, nproc: 4096}}
  grafana:
    ulimits: {{nofile: 4096, nproc: 4096}}
"""
PROMETHEUS = f"""
FROM {DEBIAN}
COPY prometheus /bin/prometheus
RUN install -d -o 65534 -g 65534 /var/lib/prometheus
USER 65534:65534
ENTRYPOINT ["/bin/prometheus"]
"""
GRAFANA = """
FROM localhost/unplugd
COPY standin_grafana.py /
USER 65534:65534
ENTRYPOINT ["python3", "/standin_grafana.py"]
"""


def named_image(service: str) -> str:
    """The image that compose.yaml names."""
    found = re.search(rf"^    image: ({service}/.*)$", COMPOSE.read_text(), re.MULTILINE)
    assert found
    return f"docker.io/{found[1]}"


class Project:
    """The three services."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self._override = directory / "override.yaml"
        self._override.write_text(OVERRIDE.format(base=DEBIAN))

    def _command(self, *arguments: str) -> list[str | Path]:
        return ["podman-compose", "-p", "demo", "-f", COMPOSE, "-f", self._override, *arguments]

    def build(self, *arguments: str) -> None:
        self.engine.build(*self._command("build", *arguments))

    def compose(self, *arguments: str) -> str:
        done = self.engine.run(*self._command(*arguments))
        return done.stdout + done.stderr

    def ask(self, url: str) -> Any:
        """The JSON at a published port, None while there is none."""
        body = self.engine.fetch(url)
        return None if body is None else json.loads(body)

    def volume(self) -> Path:
        """Where unplugd's runtime directory is for this machine."""
        (found,) = json.loads(self.engine.run("podman", "volume", "inspect", "demo_runtime").stdout)
        return Path(found["Mountpoint"])

    def value(self, expression: str) -> str | None:
        """The value of the one series that the published Prometheus has, None while there is none."""
        answer = self.ask(f"http://127.0.0.1:9090/api/v1/query?query={expression}")
        found = answer["data"]["result"] if answer else []
        return str(found[0]["value"][1]) if found else None


@contextmanager
def up(engine: Engine, directory: Path) -> Iterator[Project]:
    """The project, built and brought up; localhost/unplugd is there already. `directory` is for what it needs."""
    for name, file, text in (("prom", binary("prometheus"), PROMETHEUS),
                             ("grafana", Path(__file__).with_name("standin_grafana.py"), GRAFANA)):  # fmt: skip
        context = directory / name
        context.mkdir()
        shutil.copy(file, context)
        (context / "Dockerfile").write_text(text)
        engine.build("podman", "build", "--quiet", "--tag", named_image(name), context)
    project = Project(engine, directory)
    project.build("unplugd")
    try:
        project.compose("up", "-d")
        yield project
    finally:
        project.compose("down", "-v", "-t", "5")
