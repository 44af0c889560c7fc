"""The process: it loads little, ends with the command's status, and what was printed is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOADED = """
from unplugd.__main__ import _load_asyncio
_load_asyncio()
import sys, unplugd.service
print(*sorted({"ssl", "h11", "prometheus_client", "aiofiles", "json"} & sys.modules.keys()))
import ssl
assert ssl.OPENSSL_VERSION
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_what_a_start_does_not_need_is_not_loaded() -> None:
    done = run("-c", LOADED)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_it_ends_with_the_commands_status(tmp_path: Path) -> None:
    configuration = tmp_path / "unplugd.toml"
    configuration.write_text("publish = true\n")
    done = run("-m", "unplugd", "--config", str(configuration), "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(configuration) in done.stdout
    configuration.write_text("colour = 1\n")
    done = run("-m", "unplugd", "--config", str(configuration), "--check")
    assert done.returncode == 2
    assert "colour" in done.stderr
