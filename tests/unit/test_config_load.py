"""The configuration: every key with what it may be, and messages that name file, key and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unplugd.config.files
from unplugd.config.load import Config, EmbeddedDomain, files, load
from unplugd.core.blacklist import LAST_BUILD, BlacklistEntry, BlacklistRange
from unplugd.core.guestrules import GuestRule, Patterns
from unplugd.core.protocol import Action
from unplugd.errors import ConfigError


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "unplugd.toml"
    file.write_text(text)
    return load(file)


def value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def assignment(key: str, toml: str) -> str:
    section, _, name = key.rpartition(".")
    return (f"[{section}]\n" if section else "") + f"{name} = {toml}\n"


def refused(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.file == str(tmp_path / "unplugd.toml")
    assert str(caught.value).startswith(caught.value.file)
    return caught.value


GOOD: list[tuple[str, str, Any]] = [
    ("runtime_dir", '"/run/other"', Path("/run/other")),
    ("publish", "false", False),
    ("protocol_version", "0", 0),
    ("xenstore.backend", '"auto"', "auto"),
    ("xenstore.backend", '"socket"', "socket"),
    ("xenstore.backend", '"xenbus"', "xenbus"),
    ("xenstore.backend", '"embedded"', "embedded"),
    ("xenstore.socket", '"/run/xenstored/socket"', "/run/xenstored/socket"),
    ("xenstore.socket", '""', ""),
    ("blacklist.lookup_timeout", "0.25", 0.25),
    ("blacklist.lookup_timeout", "2", 2.0),
    ("blacklist.on_error", '"allow"', "allow"),
    ("blacklist.on_error", '"deny"', "deny"),
    ("blacklist.on_error", '"mirror"', "mirror"),
    ("blacklist.mode", '"observe"', "observe"),
    ("blacklist.action", '"withhold"', Action.WITHHOLD),
    ("policy.allow_unplug", "[]", 0),
    ("policy.allow_unplug", '["nics", "nvme-disks"]', 10),
    ("policy.allow_unplug", '["ide-disks", "nics", "aux-ide-disks", "nvme-disks"]', 15),
    ("policy.blacklisted_unplug", '"deny"', "deny"),
    ("policy.legacy_unplug", "true", True),
    ("socket.device_model_uids", '"auto"', None),
    ("socket.device_model_uids", "[65534, 7]", (65534, 7)),
    ("log.sinks", '["file", "journal", "stderr"]', ("file", "journal", "stderr")),
    ("log.sinks", '["file", "file"]', ("file",)),
    ("log.directory", '"/var/log/other"', Path("/var/log/other")),
    ("log.rate", "0", 0),
    ("log.rate", "512.5", 512.5),
    ("log.burst", "1", 1),
    ("log.on_limit", '"delay"', "delay"),
    ("log.flush_after", "0.5", 0.5),
    ("log.identifier", '"qemu-dm-{domid}"', "qemu-dm-{domid}"),
    ("log.identifier", '"{name}"', "{name}"),
    ("log.max_file_bytes", "65536", 65536),
    ("http.listen", '""', None),
    ("http.listen", '"0.0.0.0:80"', ("0.0.0.0", 80)),
    ("http.listen", '"[::1]:9877"', ("::1", 9877)),
    ("http.listen", '"localhost:0"', ("localhost", 0)),
    ("http.listen", '"*:9877"', ("*", 9877)),
    ("http.listen", '"[::]:9877"', ("::", 9877)),
    ("http.listen", '"[fe80::1%eth0]:9877"', ("fe80::1%eth0", 9877)),
    ("http.listen", '"dom0.example.:9877"', ("dom0.example.", 9877)),
    ("log.directory", f'"/{"x" * 999}"', Path("/" + "x" * 999)),
    ("xenstore.socket", f'"/{"x" * 106}"', "/" + "x" * 106),
    ("attach.when_unreachable", '"absent"', "absent"),
    ("attach.when_unreachable", '"wait"', "wait"),
    ("attach.unreachable_after", "0.5", 0.5),
    ("attach.user", '"nobody"', "nobody"),
    ("attach.monitor", '"/run/qmp-{domid}"', "/run/qmp-{domid}"),
    ("attach.monitor", '""', ""),
]

BAD: list[tuple[str, str, str]] = [
    ("runtime_dir", '"run"', "an absolute path"),
    ("runtime_dir", f'"/{"x" * 100}"', "at most 93 bytes"),
    ("runtime_dir", "7", "a string"),
    ("publish", "1", "true or false"),
    ("publish", '"yes"', "true or false"),
    ("protocol_version", "2", "0 to 1"),
    ("protocol_version", "true", "0 to 1"),
    ("protocol_version", "1.0", "0 to 1"),
    ("xenstore.backend", '"xs"', '"auto", "socket", "xenbus", "embedded"'),
    ("xenstore.backend", "[]", '"auto"'),
    ("xenstore.socket", '"socket"', "an absolute path, or empty"),
    ("blacklist.lookup_timeout", "0", "0.001 to 60"),
    ("blacklist.lookup_timeout", "nan", "0.001 to 60"),
    ("blacklist.lookup_timeout", "inf", "0.001 to 60"),
    ("blacklist.lookup_timeout", "true", "0.001 to 60"),
    ("blacklist.lookup_timeout", '"1s"', "seconds"),
    ("blacklist.on_error", '"ignore"', '"mirror", "allow", "deny"'),
    ("blacklist.mode", '"report"', '"enforce", "observe"'),
    ("blacklist.action", '"deny"', '"report", "refuse", "withhold"'),
    ("policy.allow_unplug", '["disks"]', '"ide-disks", "nics", "aux-ide-disks", "nvme-disks"'),
    ("policy.allow_unplug", "3", "a list of"),
    ("policy.allow_unplug", "[1]", "a list of"),
    ("policy.blacklisted_unplug", '"mirror"', '"allow", "deny"'),
    ("policy.legacy_unplug", "0", "true or false"),
    ("socket.device_model_uids", '"root"', '"auto", or a list of uids'),
    ("socket.device_model_uids", "[]", "a list of uids"),
    ("socket.device_model_uids", "[-1]", "a list of uids"),
    ("socket.device_model_uids", "[4294967295]", "a list of uids"),
    ("socket.device_model_uids", "[true]", "a list of uids"),
    ("log.sinks", '"journal"', 'a list of "journal", "file", "stderr"'),
    ("log.sinks", '["syslog"]', 'a list of "journal", "file", "stderr"'),
    ("log.directory", '"logs"', "an absolute path"),
    ("log.directory", '"/a\\u0000b"', "control characters"),
    ("log.rate", "-1", "bytes a second"),
    ("log.burst", "-0.5", "bytes"),
    ("log.on_limit", '"block"', '"drop", "delay"'),
    ("log.flush_after", "0", "seconds"),
    ("log.identifier", '""', "1 to 64"),
    ("log.identifier", '"unplugd"', "other than"),
    ("log.identifier", '"{uuid}"', "{domid} and {name}"),
    ("log.identifier", '"a\\nb"', "printable"),
    ("log.identifier", "7", "printable"),
    ("log.max_file_bytes", "100", "4096"),
    ("log.max_file_bytes", "1e6", "4096"),
    ("http.listen", '"9877"', '"address:port"'),
    ("http.listen", '":9877"', '"address:port"'),
    ("http.listen", '"localhost:http"', '"address:port"'),
    ("http.listen", '"localhost:65536"', '"address:port"'),
    ("http.listen", '"::1:9877"', '"address:port"'),
    ("http.listen", '"127.0.0.1:\u0661"', '"address:port"'),
    ("http.listen", '"127.0.0..1:9877"', '"address:port"'),
    ("http.listen", f'"{"x" * 64}.example:80"', '"address:port"'),
    ("http.listen", f'"{"x." * 127}x:80"', '"address:port"'),
    ("http.listen", '"gr\u00f6\u00dfe:80"', '"address:port"'),
    ("http.listen", '"a b:80"', '"address:port"'),
    ("http.listen", '"-a:80"', '"address:port"'),
    ("http.listen", '"[localhost]:80"', '"address:port"'),
    ("http.listen", '"[::1%]:80"', '"address:port"'),
    ("http.listen", f'"127.0.0.1:{"9" * 5000}"', '"address:port"'),
    ("log.directory", f'"{"/x" * 501}"', "at most 1000 bytes"),
    ("xenstore.socket", f'"/{"x" * 107}"', "at most 107 bytes"),
    ("attach.monitor", f'"/{"x" * 107}"', "at most 107 bytes"),
    ("http.listen", "9877", "a string"),
    ("attach.when_unreachable", '"deny"', '"absent", "wait"'),
    ("attach.unreachable_after", "0", "seconds"),
    ("attach.unreachable_after", "inf", "seconds"),
    ("attach.user", "65534", "the name of a user"),
    ("attach.user", '"/root"', "the name of a user"),
    ("attach.monitor", '"qmp-{domid}"', "an absolute path, or empty"),
]


@pytest.mark.parametrize(("key", "toml", "expected"), GOOD)
def test_good_values(tmp_path: Path, key: str, toml: str, expected: Any) -> None:
    assert value(read(tmp_path, assignment(key, toml)), key) == expected


@pytest.mark.parametrize(("key", "toml", "allowed"), BAD)
def test_bad_values_are_named_with_what_is_allowed(tmp_path: Path, key: str, toml: str, allowed: str) -> None:
    error = refused(tmp_path, assignment(key, toml))
    assert error.key == key
    assert allowed in error.problem


def test_every_key_has_a_good_and_a_bad_value_here() -> None:
    keys = {
        "runtime_dir", "publish", "protocol_version", "xenstore.backend", "xenstore.socket",
        "blacklist.mode", "blacklist.action", "blacklist.lookup_timeout", "blacklist.on_error",
        "policy.allow_unplug", "policy.blacklisted_unplug",
        "policy.legacy_unplug", "socket.device_model_uids", "log.sinks", "log.directory", "log.rate", "log.burst",
        "log.on_limit", "log.flush_after", "log.identifier", "log.max_file_bytes", "http.listen",
        "attach.when_unreachable", "attach.unreachable_after", "attach.user", "attach.monitor",
    }  # fmt: skip
    assert {key for key, _, _ in GOOD} == {key for key, _, _ in BAD} == keys


def test_the_defaults_are_the_contracts(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert config == Config()
    assert (config.runtime_dir, config.publish, config.protocol_version) == (Path("/run/unplugd"), True, 1)
    assert (config.xenstore.backend, config.xenstore.socket, config.xenstore.domains) == ("auto", "", ())
    assert (config.blacklist.lookup_timeout, config.blacklist.on_error) == (1.0, "mirror")
    assert (config.blacklist.mode, config.blacklist.action) == ("enforce", Action.REFUSE)
    assert (config.guests, config.warnings) == ((), ())
    assert (config.policy.allow_unplug, config.policy.blacklisted_unplug) == (15, "allow")
    assert not config.policy.legacy_unplug
    assert config.socket.device_model_uids is None
    assert config.log.sinks == ("journal",)
    assert config.log.directory == Path("/var/log/xen/unplugd")
    assert (config.log.rate, config.log.burst, config.log.on_limit) == (256, 131072, "drop")
    assert config.log.identifier == "unplugd-guest"
    assert (config.log.flush_after, config.log.max_file_bytes) == (5.0, 1048576)
    assert config.http.listen == ("127.0.0.1", 9877)
    assert (config.attach.when_unreachable, config.attach.unreachable_after) == ("absent", 10.0)
    assert (config.attach.user, config.attach.monitor) == ("", "")


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("colour = 1", "colour", ["runtime_dir", "publish", "[xenstore]", "[log]"]),
        ("[colours]\na = 1", "colours", ["[products]"]),
        ("[log]\ncolour = 1", "log.colour", ["[log] has", "sinks", "burst"]),
        ("[xenstore]\nport = 1", "xenstore.port", ["backend", "socket", "domain"]),
        ("[blacklist]\nentries = []", "blacklist.entries", ["entry", "range"]),
        ("[http]\nport = 1", "http.port", ["listen"]),
        ("[attach]\nports = 1", "attach.ports", ["when_unreachable", "monitor"]),
        ("[[blacklist.entry]]\nproduct = 'linux'\nbuild = 1\nwhy = 'x'", "blacklist.entry #1.why", ["reason"]),
        ("[[blacklist.range]]\nproduct = 'linux'\nfirst = 1", "blacklist.range #1.first", ["from", "to"]),
        ("[[xenstore.domain]]\ndomid = 1\nid = 2", "xenstore.domain #1.id", ["domid", "name", "uuid"]),
    ],
)
def test_an_unknown_key_is_named_with_those_that_there_are(
    tmp_path: Path, text: str, key: str, words: list[str]
) -> None:
    error = refused(tmp_path, text)
    assert error.key == key
    for word in words:
        assert word in error.problem


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("log = 1", "log", "is a table"),
        ("products = 1", "products", "is a table"),
        ("[blacklist.entry]\nproduct = 'linux'", "blacklist.entry", "[[blacklist.entry]]"),
        ("[xenstore]\ndomain = [1]", "xenstore.domain", "[[xenstore.domain]]"),
        ("[[blacklist.entry]]\nproduct = 'linux'", "blacklist.entry #1.build", "missing"),
        ("[[blacklist.entry]]\nbuild = 1", "blacklist.entry #1.product", "missing"),
        ("[[blacklist.range]]\nfrom = 1", "blacklist.range #1.product", "missing"),
        ("[[xenstore.domain]]\nname = 'x'", "xenstore.domain #1.domid", "missing"),
        ("[[xenstore.domain]]\ndomid = 0", "xenstore.domain #1.domid", "1 to 32751"),
        ("[[blacklist.entry]]\nproduct = 'linux'\nbuild = -1", "blacklist.entry #1.build", "0 to 4294967295"),
        ("[[blacklist.entry]]\nproduct = 'linux'\nbuild = 4294967296", "blacklist.entry #1.build", "0 to 42949"),
        ("[[blacklist.entry]]\nproduct = 3\nbuild = 1", "blacklist.entry #1.product", "a string"),
        ("[[blacklist.entry]]\nproduct = 'windows'\nbuild = 1", "blacklist.entry #1.product", "xensource-windows"),
        ("[[blacklist.range]]\nproduct = 'linux'\nfrom = 5\nto = 4", "blacklist.range #1.from", "after"),
        ("[[xenstore.domain]]\ndomid = 7\n[[xenstore.domain]]\ndomid = 7", "xenstore.domain #2.domid", "twice"),
        ("[products]\nmine = 0", 'products."mine"', "1 to 65535"),
        ("[products]\nmine = 65536", 'products."mine"', "1 to 65535"),
        ("[products]\nmine = 'x'", 'products."mine"', "1 to 65535"),
        ("[products]\nlinux = 9", 'products."linux"', "is 3 in Xen's registry"),
        ("[products]\nmine = 3", 'products."mine"', "0x3 is linux already"),
        ("[products]\nmine = 9\nother = 9", 'products."other"', "0x9 is mine already"),
        ("[products]\n'a b' = 9", 'products."a b"', "printable ASCII"),
        ("[products]\n'a/b' = 9", 'products."a/b"', "printable ASCII"),
        ("[products]\n'' = 9", 'products.""', "printable ASCII"),
        ("[log]\non_limit = 'delay'\nrate = 0", "log.rate", "at least 1"),
        ("guest = 1", "guest", "[[guest]]"),
        ("[[guest]]\nrate = 1", "guest #1.match", "missing"),
        ("[[guest]]\nmatch = []", "guest #1.match", "at least one"),
        ("[[guest]]\nmatch = ['']", "guest #1.match", "patterns of guests' names"),
        ("[[guest]]\nmatch = 'web-*'", "guest #1.match", "a list"),
        ("[[guest]]\nmatch = ['*']\nblacklist = 'off'", "guest #1.blacklist", '"enforce", "observe", "exempt"'),
        ("[[guest]]\nmatch = ['*']\nrate = -1", "guest #1.rate", "bytes a second"),
        ("[[guest]]\nmatch = ['*']\non_limit = 'delay'\nrate = 0", "guest #1.rate", "at least 1"),
        ("[log]\nrate = 0\n[[guest]]\nmatch = ['*']\non_limit = 'delay'", "guest #1.on_limit", "at least 1"),
        ("[[blacklist.entry]]\nproduct = 'linux'\nbuild = 1\naction = 'deny'", "blacklist.entry #1.action", '"report"'),
        ("[[blacklist.range]]\nproduct = 'linux'\nguests = []", "blacklist.range #1.guests", "at least one"),
    ],
)
def test_what_is_wrong_in_tables(tmp_path: Path, text: str, key: str, problem: str) -> None:
    error = refused(tmp_path, text)
    assert error.key == key
    assert problem in error.problem


def test_tables(tmp_path: Path) -> None:
    config = read(tmp_path, """
        [products]
        "my-drivers" = 0x1234
        [[blacklist.entry]]
        product = "xensource-windows"
        build = 86451
        reason = "loses data on resume"
        [[blacklist.entry]]
        product = "my-drivers"
        build = 0
        [[blacklist.range]]
        product = "experimental"
        from = 0x080000
        to = 0x0801ff
        [[blacklist.range]]
        product = "linux"
        [[xenstore.domain]]
        domid = 7
        name = "web-01"
        uuid = "4f0e0c5e-0000-4000-8000-000000000007"
        [[xenstore.domain]]
        domid = 8
    """)
    assert config.products == {"my-drivers": 0x1234}
    assert config.blacklist.entries == (
        BlacklistEntry("xensource-windows", 86451, "loses data on resume"), BlacklistEntry("my-drivers", 0, ""),
    )  # fmt: skip
    assert config.blacklist.ranges == (
        BlacklistRange("experimental", 0x080000, 0x0801FF, ""), BlacklistRange("linux", 0, LAST_BUILD, ""),
    )  # fmt: skip
    assert config.xenstore.domains == (
        EmbeddedDomain(7, "web-01", "4f0e0c5e-0000-4000-8000-000000000007"), EmbeddedDomain(8, "", ""),
    )  # fmt: skip


def test_actions_and_guests(tmp_path: Path) -> None:
    config = read(tmp_path, """
        [[blacklist.entry]]
        product = "linux"
        build = 1
        action = "report"
        guests = ["web-*", "4f0e0c5e-0000-4000-8000-000000000007"]
        [[blacklist.range]]
        product = "linux"
        action = "withhold"
        guests = ["canary-?"]
        [[guest]]
        match = ["vdi-*"]
        blacklist = "observe"
        allow_unplug = ["nics"]
        rate = 1024
        burst = 4096
        on_limit = "delay"
        [[guest]]
        match = ["*"]
    """)
    patterns = Patterns("web-*", "4f0e0c5e-0000-4000-8000-000000000007")
    assert config.blacklist.entries == (BlacklistEntry("linux", 1, "", Action.REPORT, patterns),)
    assert config.blacklist.ranges == (
        BlacklistRange("linux", 0, LAST_BUILD, "", Action.WITHHOLD, Patterns("canary-?")),)
    assert config.guests == (
        GuestRule(Patterns("vdi-*"), "observe", 2, 1024, 4096, "delay"), GuestRule(Patterns("*")),
    )  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [("allow", Action.REFUSE), ("deny", Action.WITHHOLD)])
def test_the_deprecated_key_is_followed_with_a_warning(tmp_path: Path, old: str, new: Action) -> None:
    config = read(tmp_path, f'[policy]\nblacklisted_unplug = "{old}"\n')
    assert config.blacklist.action is new
    (warning,) = config.warnings
    assert warning.startswith(f"{tmp_path / 'unplugd.toml'}: policy.blacklisted_unplug: is deprecated")
    assert f'blacklist.action = "{new.name.lower()}"' in warning


def test_the_deprecated_key_does_nothing_beside_its_replacement(tmp_path: Path) -> None:
    config = read(tmp_path, '[policy]\nblacklisted_unplug = "deny"\n[blacklist]\naction = "report"\n')
    assert config.blacklist.action is Action.REPORT
    assert ["does nothing" in warning for warning in config.warnings] == [True]


def drop_in(tmp_path: Path, name: str, text: str) -> None:
    directory = tmp_path / "unplugd.toml.d"
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)


def test_drop_ins_come_in_lexical_order_and_the_last_word_counts(tmp_path: Path) -> None:
    drop_in(tmp_path, "20-b.toml", "[log]\nrate = 20\n[products]\nmine = 20\n")
    drop_in(tmp_path, "10-a.toml", "[log]\nrate = 10\nburst = 10\n[products]\nmine = 10\n")
    drop_in(tmp_path, "9-c.toml", "[log]\nrate = 9\n")
    drop_in(tmp_path, "99.toml.disabled", "colour = 1")
    config = read(tmp_path, "[log]\nrate = 1\nburst = 1\nflush_after = 1\n")
    assert (config.log.rate, config.log.burst, config.log.flush_after) == (9, 10, 1)
    assert config.products == {"mine": 20}
    assert [file.name for file in files(tmp_path / "unplugd.toml")] == [
        "unplugd.toml", "10-a.toml", "20-b.toml", "9-c.toml",
    ]  # fmt: skip


def test_lists_of_tables_add_up(tmp_path: Path) -> None:
    drop_in(tmp_path, "1.toml", "[[blacklist.entry]]\nproduct = 'later'\nbuild = 2\n")
    drop_in(tmp_path, "2.toml", "[products]\nlater = 9\n")
    config = read(tmp_path, "[[blacklist.entry]]\nproduct = 'linux'\nbuild = 1\n")
    assert [(entry.product, entry.build) for entry in config.blacklist.entries] == [("linux", 1), ("later", 2)]


def test_the_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    drop_in(tmp_path, "10-a.toml", "[log]\nrate = 'x'\n")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "[log]\nrate = 5\n")
    assert caught.value.file.endswith("unplugd.toml.d/10-a.toml")


def test_a_wrong_value_is_wrong_even_where_a_later_file_replaces_it(tmp_path: Path) -> None:
    drop_in(tmp_path, "10-a.toml", "[log]\nrate = 7\n")
    assert refused(tmp_path, "[log]\nrate = 'x'\n").key == "log.rate"


@pytest.mark.parametrize("text", ["[log", "a = ", "a = 1\na = 2", "\0"])
def test_what_is_not_toml(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, text)
    assert error.problem.startswith("is not TOML: ")


def test_what_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "unplugd.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path / "unplugd.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "unplugd.toml.d").mkdir()
    (tmp_path / "unplugd.toml.d" / "x.toml").mkdir()
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read: it is not a regular file"):
        read(tmp_path, "")


def test_the_default_file_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unplugd.config.files, "DEFAULT_FILE", str(tmp_path / "unplugd.toml"))
    monkeypatch.setattr(unplugd.config.files, "DEFAULT_DROP_INS", str(tmp_path / "conf.d"))
    assert load() == Config()
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "1.toml").write_text("publish = false")
    assert not load().publish
    (tmp_path / "unplugd.toml").write_text("protocol_version = 0")
    assert load().protocol_version == 0
    assert not load().publish


def test_the_contracts_own_example(tmp_path: Path) -> None:
    config = read(tmp_path, """
        runtime_dir = "/run/unplugd"
        [socket]
        device_model_uids = "auto"  # section 6
        [log]
        sinks = ["journal"]
        on_limit = "drop"
        [http]
        listen = "127.0.0.1:9877"
    """)
    assert config == Config()


VALUES: st.SearchStrategy[object] = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=True), st.text(max_size=8),
    st.just([]), st.just({}), st.lists(st.integers(-2, 2), max_size=2),
)  # fmt: skip


def toml_of(value: object) -> str:
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value if not 0xD800 <= ord(letter) < 0xE000) + '"'
    return str(value).lower()


@given(key=st.sampled_from(sorted({key for key, _, _ in GOOD})), value=VALUES)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_taken_or_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    problem = None
    try:
        read(tmp_path, assignment(key, toml_of(value)))
    except ConfigError as error:
        problem = error
    if problem is not None:
        assert problem.key == key
        assert problem.problem
        assert not re.search(r"[\x00-\x1f]", str(problem)), "one line"
