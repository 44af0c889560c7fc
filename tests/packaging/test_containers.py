"""The image, built by buildah on a Debian made here and run by podman; and compose.yaml, by podman-compose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.daemon import Wire, uuid
from tests.lab.xenstored import running
from tests.packaging.conftest import DEBIAN
from tests.packaging.engine import ULIMITS, Engine, near
from tests.packaging.project import Project, up
from tests.packaging.tree import ROOT, wait_for

DEMO = ROOT / "config" / "container" / "demo.toml"
UNPRIVILEGED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", *ULIMITS)
SIZE = 150_000_000
"""Bytes that the image may have beside its base: Python is most of it."""


class Container:
    """A container that runs, and what is asked of it."""

    def __init__(self, engine: Engine, name: str, *arguments: str) -> None:
        self.engine = engine
        self.name = name
        engine.run("podman", "run", "--detach", "--name", name, *arguments)
        wait_for(self.is_healthy, f"{name} to be healthy: {self.log()}")

    def is_healthy(self) -> bool:
        """What the image's own HEALTHCHECK says now."""
        return self.engine.run("podman", "healthcheck", "run", self.name, check=False).returncode == 0

    def execute(self, *command: str) -> str:
        return self.engine.run("podman", "exec", self.name, *command).stdout

    def log(self) -> str:
        done = self.engine.run("podman", "logs", self.name)
        return done.stdout + done.stderr

    def volume(self) -> Path:
        """Where its runtime directory is for this machine."""
        (mount,) = [each for each in self.engine.inspect(self.name)["Mounts"] if each["Destination"] == "/run/unplugd"]
        return Path(mount["Source"])

    def stop(self) -> int:
        """SIGTERM, as `docker stop`; the exit status."""
        self.engine.run("podman", "stop", "--time", "30", self.name)
        return int(self.engine.inspect(self.name)["State"]["ExitCode"])


@pytest.fixture
def named(engine: Engine) -> Iterator[str]:
    yield "unplugd"
    engine.run("podman", "rm", "--force", "--time", "1", "unplugd", check=False)


def test_what_the_image_says_of_itself(engine: Engine, image: str) -> None:
    found, base = json.loads(engine.run("podman", "image", "inspect", image, DEBIAN).stdout)
    config = found["Config"]
    assert config["User"] == "unplugd"
    assert config["Entrypoint"] == ["unplugd"]
    assert found["Healthcheck"]["Test"] == ["CMD", "unplugctl", "status"]
    assert "9877/tcp" in config["ExposedPorts"]
    assert "/run/unplugd" in config["Volumes"]
    assert found["Size"] - base["Size"] < SIZE


def test_it_serves_without_rights(engine: Engine, image: str, named: str) -> None:
    mount = f"{DEMO}:/etc/unplugd/conf.d/10-demo.toml:ro"
    container = Container(engine, named, *UNPRIVILEGED, "--publish", "127.0.0.1:9877:9877", "--volume", mount, image)
    assert container.execute("id", "-un").strip() == "unplugd"
    with near(container.volume()) as runtime, Wire(runtime / "dom8.sock") as guest:
        assert guest.announce(1, 86451) == 0xD249
        guest.log(b"hello from the guest\n")
    assert "BLACKLISTED" in container.execute("unplugctl", "list")
    metrics = engine.fetch("http://127.0.0.1:9877/metrics")
    assert metrics is not None
    assert b'unplugd_domain_blacklisted{domid="8"' in metrics
    assert container.stop() == 0
    assert "hello from the guest" in container.log()


def test_a_daemon_that_hangs_is_not_healthy(engine: Engine, image: str, named: str) -> None:
    mount = f"{DEMO}:/etc/unplugd/conf.d/10-demo.toml:ro"
    container = Container(engine, named, *UNPRIVILEGED, "--volume", mount, image)
    engine.run("podman", "kill", "--signal", "STOP", named)
    assert not container.is_healthy()
    engine.run("podman", "kill", "--signal", "CONT", named)
    wait_for(container.is_healthy, "it to be healthy again")


def test_beside_xenstored_as_in_a_dom0(engine: Engine, image: str, named: str) -> None:
    """The mounts that the Dockerfile names: xenstored's socket and the runtime directory, both root's."""
    runtime = engine.directory / "runtime"
    runtime.mkdir()
    with running("c") as xenstored:
        xenstored.create(7, "web-01", uuid(7))
        container = Container(
            engine, named, "--read-only", "--user", "0", *ULIMITS,
            "--volume", f"{xenstored.socket.parent}:/run/xenstored", "--volume", f"{runtime}:/run/unplugd", image,
        )  # fmt: skip
        with near(runtime) as directory, Wire(directory / "dom7.sock") as guest:
            assert guest.announce(3, 1) == 0x49D2
            assert guest.write(0x10, 2, 3) == 3
        wait_for(lambda: "unplug" in xenstored.dom0.directory("/local/domain/7"), "unplugd to publish")
        assert xenstored.dom0.read("/local/domain/7/unplug/product-name") == b"linux"
        xenstored.destroy(7)
        wait_for(lambda: not (runtime / "dom7.sock").exists(), "the guest's socket to go")
        assert container.stop() == 0


def test_the_three_services_work_together(engine: Engine, image: str, tmp_path: Path) -> None:
    if shutil.which("podman-compose") is None:
        pytest.skip("podman-compose is not installed")
    assert image
    with up(engine, tmp_path) as project:
        together(project)


def together(project: Project) -> None:
    engine = project.engine
    wait_for(lambda: engine.fetch("http://127.0.0.1:9877/-/ready") is not None, "unplugd's port")
    with near(project.volume()) as runtime, Wire(runtime / "dom8.sock") as guest:
        assert guest.announce(1, 86451) == 0xD249
    assert "BLACKLISTED" in project.compose("exec", "-T", "unplugd", "unplugctl", "list")

    wait_for(lambda: project.value("up") == "1", "Prometheus to scrape unplugd")
    wait_for(lambda: project.value("sum(unplugd_domain_blacklisted)") == "1", "Prometheus to know of the guest")
    wait_for(lambda: project.value("sum(unplugd:blacklisted:count)") == "1", "the recording rules")
    groups = project.ask("http://127.0.0.1:9090/api/v1/rules")["data"]["groups"]
    assert {group["name"] for group in groups} == {"unplugd.records", "unplugd.alerts"}
    assert all(rule["health"] == "ok" for group in groups for rule in group["rules"])

    (panels,) = project.ask("http://127.0.0.1:3000/").values()
    assert len(panels) > 12
    assert panels['unplugd:drivers:count{instance=~"$instance"}'] == 1
    assert panels['sum(unplugd_domains{instance=~"$instance"})'] == 1
