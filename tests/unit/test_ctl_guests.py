"""ctl/guests.py: `list` and `show`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.lab.control import UUID, blacklisted, domain, serving
from unplugd.core.escape import escape_text, utf8
from unplugd.core.history import Did, History, Step
from unplugd.ctl import guests, show
from unplugd.ctl.cli import main
from unplugd.ctl.failure import Failure

HOSTILE = "evil\x1b[2J\nnäme\t\u202e" + "A" * 300


@pytest.fixture(autouse=True)
def _no_colour() -> None:
    show.use_colour("never")


def run(*arguments: str, domains: list[dict[str, Any]]) -> int:
    with serving(*domains) as control:
        return main([*arguments, "--socket", str(control.path)])


def test_a_domain_is_found_by_domid_uuid_and_name() -> None:
    domains = [domain(7, "web-01"), domain(8, "7"), domain(9, "9"), domain(10, UUID.format(7))]
    for wanted, domid in {"7": 7, "web-01": 7, "8": 8, "9": 9, UUID.format(8): 8, UUID.format(9).upper(): 9}.items():
        assert guests.find(domains, wanted)["domid"] == domid
    assert guests.find(domains, UUID.format(7))["domid"] == 7


def test_who_is_not_there_and_who_is_there_twice() -> None:
    with pytest.raises(Failure) as failure:
        guests.find([domain()], "no\x1b[2Jone")
    assert failure.value.status == 4
    assert "\x1b" not in failure.value.problem
    with pytest.raises(Failure, match="2 domains are called web: 7, 8"):
        guests.find([domain(7, "web"), domain(8, "web")], "web")
    with pytest.raises(Failure, match=r"2 domains have the uuid .*: 7 \(web\), 8 \(web--incoming\)"):
        guests.find([domain(7, "web"), domain(8, "web--incoming", uuid=UUID.format(7))], UUID.format(7).upper())
    with pytest.raises(Failure, match="no domain 9"):
        guests.find([domain(7)], "9" * 5000)


@pytest.mark.parametrize("name", ["größe", "名前", "a b", "a\x1b[2J\u202eb", "caf\udce9", "x" * 300, "\ud800", "C:\\"])
def test_what_is_shown_can_be_pasted(name: str) -> None:
    domains = [domain(7, name), domain(8, "other")]
    for shown in (name, show.safe(name), show.name(domains[0]), escape_text(utf8(name))):
        assert guests.find(domains, shown)["domid"] == 7


def test_two_names_that_look_the_same() -> None:
    with pytest.raises(Failure, match=r"2 domains are called a\\x1b: 7, 8"):
        guests.find([domain(7, "a\x1b"), domain(8, "a\\x1b")], "a\\x1b")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    domains = [
        domain(1, "linux-1", product=3, product_name="linux", build=1, unplugged=["ide-disks", "nics"],
               log={"lines": 12, "bytes": 400}),
        blacklisted(2), domain(3, "bsd", unplugged=["nics"]), domain(4, "new", product=4660, build=5),
        domain(5, "noisy", log={"lines": 1, "throttled": True, "dropped_lines": {"rate-limit": 3, "sink": 0}}),
        domain(6, "lost", log={"lines": 1, "dropped_lines": {"rate-limit": 0, "sink": 2}}),
    ]  # fmt: skip
    assert run("list", domains=domains) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Name     ID  Driver             Build  Verdict      Unplugged       Log",
        "linux-1   1  linux                  1  allowed      ide-disks,nics  12 lines",
        "win-01    2  xensource-windows  86451  BLACKLISTED  -               -",
        "bsd       3  -                      -  -            nics            -",
        "new       4  product 4660           5  allowed      -               -",
        "noisy     5  -                      -  -            -               throttled, 3 dropped",
        "lost      6  -                      -  -            -               2 dropped",
    ]


def test_some_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "8", "-l", domains=[domain(7), domain(8)]) == 0
    assert [one["domid"] for one in json.loads(capsys.readouterr().out)["domains"]] == [8]
    assert run("list", "99", domains=[domain(7)]) == 4


def test_a_hostile_name_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    domains = [domain(7, HOSTILE, product=9, product_name=HOSTILE, build=1), domain(8)]
    assert run("list", domains=domains) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({line.index(word) for line, word in zip(lines, ("ID", " 7 ", " 8 "), strict=True)}) <= 2
    assert all(line.isprintable() and len(line) < 140 for line in lines)
    assert run("show", "7", domains=domains) == 0
    text = capsys.readouterr().out
    assert all(line.isprintable() for line in text.splitlines() if line)
    assert run("list", "-l", domains=domains) == 0
    assert json.loads(capsys.readouterr().out)["domains"] == domains


def test_a_blacklisted_guest_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    history = History()
    for at, step in enumerate((
        Step(Did.MAGIC, answer=0x49D2), Step(Did.VERSION, answer=1), Step(Did.PRODUCT, number=1),
        Step(Did.BUILD, number=86451, product=1, blacklisted=True, source="xenstore", reason="loses data on resume"),
        Step(Did.MAGIC, answer=0xD249),
    )):  # fmt: skip
        history.note(step, float(at), times=1 + 2 * (at == 4))
    assert run("show", "win-01", domains=[blacklisted(history=history.describe(1.7e9))]) == 0
    text = capsys.readouterr().out
    assert "on this host's blacklist (loses data on resume)" in text
    assert "unplugctl blacklist remove xensource-windows 86451" in text
    assert "read the magic number: 0x49d2, go on" in text
    assert "gave product number 1" in text
    assert "gave build number 86451: blacklisted by xenstore, loses data on resume" in text
    assert re.search(r"read the magic number: 0xd249, this driver is blacklisted \(3 times, last 20", text)
    assert run("show", "-l", "7", domains=[blacklisted()]) == 0


def test_the_other_summaries() -> None:
    cases = [
        (blacklisted(unplugged=["nics"], verdict=None), "all the same"),
        (blacklisted(verdict="ignored", unplugged=["nics"]), 'The action "withhold" would keep its emulated devices'),
        (blacklisted(verdict="ignored", unplugged=["nics"], product=0xFFFF), "It falls back to emulated disks"),
        (blacklisted(verdict="withheld", product=0xFFFF), "and got nothing"),
        (blacklisted(verdict="refused", unplugged=["nics"]), "unplugged before it was refused"),
        (blacklisted(blacklisted=False, verdict="reported"), "only reported: the guest was not told"),
        (domain(product=3, product_name="linux", build=1, unplugged=["nics"]), "announced itself as linux build 1"),
        (domain(product=3, product_name="linux", build=1), "unplugged nothing yet"),
        (domain(unplugged=["nics"]), "no build to blacklist"),
        (domain(connections=0), "No device model is connected"),
        (domain(), "still starting, or it has none"),
    ]
    for one, words in cases:
        assert words in " ".join(guests.summary(one))


def test_every_kind_of_step_is_told() -> None:
    steps = {
        Did.MAGIC: Step(Did.MAGIC, answer=0x49D2), Did.VERSION: Step(Did.VERSION, answer=1),
        Did.PRODUCT: Step(Did.PRODUCT, number=0), Did.IGNORED_BUILD: Step(Did.IGNORED_BUILD, number=7),
        Did.BUILD: Step(Did.BUILD, number=7, blacklisted=False, source="mirror"),
        Did.UNPLUG: Step(Did.UNPLUG, number=5, answer=0), Did.RESET: Step(Did.RESET),
        Did.RESTORED: Step(Did.RESTORED),
    }  # fmt: skip
    assert set(steps) == set(Did)
    history = History()
    for step in steps.values():
        history.note(step, 0.0)
    told = [guests.told(step) for step in history.describe(0.0)]
    assert len(set(told)) == len(Did)
    assert "took its product number back" in told
    assert "asked to unplug (mask 5): the device model was told to unplug nothing" in told
    assert any("xenstore had last" in line for line in told)
    assert guests.told({"did": "new\x1bkind"}) == "new\\x1bkind"


def test_the_facts_of_limits() -> None:
    shown = dict(guests.facts(domain(log={"limited": False})))
    assert shown["Log limit"] == "none (log-throttling = 0)"
    shown = dict(guests.facts(domain(
        build=0x090004, product=0xFFFF, product_name="experimental",
        log={"throttled": True, "balance": -3, "dropped_lines": {"rate-limit": 2, "sink": 1},
             "dropped_bytes": {"rate-limit": 2048, "sink": 5}})))  # fmt: skip
    assert shown["Driver"] == "experimental (product 65535), build 589828 (9.0.4)"
    assert shown["Log limit"] == "256 bytes a second, 131072 at once, -3 left now, over it"
    assert shown["Dropped"] == "2 lines (2.0 KiB) by rate-limit, 1 line (5 B) by sink"


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [("allowed", "allowed"), ("reported", "reported"), ("refused", "BLACKLISTED"), ("ignored", "IGNORED"),
     ("withheld", "WITHHELD")],
)  # fmt: skip
def test_each_verdict_has_its_word(verdict: str, shown: str) -> None:
    one = domain(product=3, build=1, verdict=verdict, blacklisted=verdict not in ("allowed", "reported"))
    assert guests.verdict(one) == shown
    older = domain(product=3, build=1, blacklisted=one["blacklisted"])
    del older["verdict"]
    assert guests.verdict(older) == ("BLACKLISTED" if one["blacklisted"] else "allowed")


def test_the_rules_that_decided_are_shown() -> None:
    shown = dict(guests.facts(blacklisted(rule="entry linux 1 (refuse)", guest_rule="[[guest]] web-*")))
    assert (shown["Decided by"], shown["Guest rule"]) == ("entry linux 1 (refuse)", "[[guest]] web-*")
    assert not {"Decided by", "Guest rule"} & set(dict(guests.facts(domain())))
