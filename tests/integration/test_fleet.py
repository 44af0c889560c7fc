"""What people ask of a fleet, asked of a real Prometheus that scrapes two real hosts: it answers, and rightly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_observability import DASHBOARD, FLEET
from tests.lab.fleet import RULES, Fleet, running

Series = set[tuple[tuple[str, ...], float]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


def plain(expression: str) -> str:
    """A panel's query as Grafana sends it, for all hosts and the last minute."""
    for name, value in {"$__rate_interval": "1m", "$__range": "1m", "$instance": ".*"}.items():
        expression = expression.replace(name, value)
    return expression


def documented() -> dict[str, str]:
    """The queries of docs/fleet.md by their question."""
    return dict(re.findall(r"^\| ([^|]*) \| `(.*)` \|$", FLEET, re.MULTILINE))


def test_every_panel_of_the_dashboard_has_data(fleet: Fleet) -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 15
    for query in queries:
        fleet.prometheus.wait_for(lambda: bool(fleet.prometheus.query(plain(query))), query)  # noqa: B023 (called at once)


def test_every_question_of_the_page_has_its_answer(fleet: Fleet) -> None:
    a, b = fleet.hosts["a"], fleet.hosts["b"]
    answers: dict[str, tuple[tuple[str, ...], Series]] = {
        "which driver builds run where": (
            ("instance", "product", "build"),
            {((a, "1", "86451"), 1), ((a, "3", "1"), 1), ((b, "3", "1"), 1), ((b, "2", "589826"), 1),
             ((b, "1", "86460"), 1), ((b, "1", "86451"), 1)},
        ),
        "how many hosts run this build": ((), {((), 2)}),
        "do all hosts have the same number of blacklisted builds": (("entries",), {(("3",), 1), (("1",), 1)}),
        "which hosts have fewer than the maximum": (("instance",), {((b,), 1)}),
        "which guests have a blacklisted driver": (("instance", "domid"), {((a, "7"), 1), ((b, "10"), 1)}),
        "what became of the drivers, by verdict": (
            ("verdict",), {(("allowed",), 3), (("reported",), 1), (("refused",), 1), (("ignored",), 1)},
        ),
        "which builds would be hit if the blacklist were enforced": (("product", "build"), {(("1", "86460"), 1)}),
        "which guests were refused and unplugged devices all the same": (("instance", "domid"), {((b, "10"), 1)}),
        "which builds ignore a refusal, so that only `withhold` stops them": (
            ("product", "build"), {(("1", "86451"), 1)},
        ),
        "which guests run without PV devices": (("instance", "domid"), {((a, "7"), 0), ((a, "9"), 0)}),
        "which versions of unplugd run": ((), {((), 2)}),
    }
    flooding = "which guests lose lines to the rate limit"
    assert set(documented()) == {*answers, flooding}
    for question, (labels, expected) in answers.items():

        def answer(question: str = question, labels: tuple[str, ...] = labels) -> Series:
            found = fleet.prometheus.query(documented()[question])
            return {(tuple(metric[label] for label in labels), value) for metric, value in found}

        fleet.prometheus.wait_for(lambda: answer() == expected, f"{question}: {answer()}")  # noqa: B023 (called at once)
    fleet.prometheus.wait_for(lambda: bool(fleet.prometheus.query(documented()[flooding])), flooding)
    (metric, value), = fleet.prometheus.query(documented()[flooding])
    assert (metric["instance"], metric["domid"]) == (a, "9")
    assert value > 0


def test_the_rules_are_evaluated_and_an_alert_fires(fleet: Fleet) -> None:
    def rules() -> list[dict[str, object]]:
        return [rule for group in fleet.prometheus.api("rules")["groups"] for rule in group["rules"]]

    # A device model broke the protocol on b; the blacklisted guest of a is alerted of after five minutes.
    fleet.prometheus.wait_for_value('count(ALERTS{alertname="UnplugdProtocolErrors",alertstate="firing"})', 1)
    fleet.prometheus.wait_for_value('count(ALERTS{alertname="UnplugdGuestBlacklisted",alertstate="pending"})', 2)
    assert {rule["health"] for rule in rules()} == {"ok"}, json.dumps(rules())
    assert {rule["name"] for rule in rules()} == set(re.findall(r"- (?:record|alert): (\S+)", Path(RULES).read_text()))
