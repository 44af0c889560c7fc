"""What each route answers, without a connection."""

from __future__ import annotations

import json

import pytest

from tests.lab.hostview import StandInDomain, StandInHost, many
from unplugd.core.counters import KINDS
from unplugd.http.exposition import OPENMETRICS, TEXT
from unplugd.http.landing import TYPE as HTML
from unplugd.http.pages import JSON, PLAIN, Page, Pages

OPEN = ("/metrics", "/-/healthy", "/-/ready", "/")
PRIVATE = ("/api/v1/domains", "/api/v1/domains/7", "/api/v1/status")


def get(host: StandInHost, path: str, *, method: str = "GET", accept: str = "", everything: bool = True) -> Page:
    return Pages(host).answer(method, path, accept, everything=everything)


def body(page: Page) -> bytes:
    return page.body if isinstance(page.body, bytes) else b"".join(page.body)


@pytest.mark.parametrize("path", OPEN)
def test_anybody_gets_the_open_pages(path: str) -> None:
    for everything in (False, True):
        assert get(StandInHost(), path, everything=everything).status == 200


@pytest.mark.parametrize("path", PRIVATE)
def test_the_guests_are_on_the_control_socket_only(path: str) -> None:
    host = StandInHost([StandInDomain()])
    assert get(host, path).status == 200
    page = get(host, path, everything=False)
    assert (page.status, page.type) == (404, JSON)
    assert "web-01" in body(get(host, "/")).decode()
    assert "web-01" not in body(get(host, "/", everything=False)).decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW"])
@pytest.mark.parametrize("path", [*OPEN, *PRIVATE])
def test_only_get_and_head_are_served(path: str, method: str) -> None:
    page = get(StandInHost([StandInDomain()]), path, method=method)
    assert page.status == 405
    assert ("Allow", "GET, HEAD") in page.headers


@pytest.mark.parametrize(
    "path", ["", "*", "//", "/metrics/", "/Metrics", "/favicon.ico", "/../metrics", "/api/v1", "/api/v1/domains/"]
)
def test_other_paths_are_not_found(path: str) -> None:
    page = get(StandInHost([StandInDomain()]), path)
    assert page.status == 404
    assert page.type == (JSON if path.startswith("/api/") else PLAIN)


def test_types_are_exact() -> None:
    host = StandInHost([StandInDomain()])
    assert get(host, "/metrics").type == TEXT
    assert get(host, "/metrics", accept="application/openmetrics-text").type == OPENMETRICS
    assert get(host, "/-/healthy").type == get(host, "/-/ready").type == PLAIN
    assert get(host, "/").type == HTML
    assert get(host, "/api/v1/domains").type == JSON


def test_readiness_says_what_it_waits_for() -> None:
    host = StandInHost()
    assert get(host, "/-/ready").status == 200
    host.awaited = "xenstored at /run/xenstored/socket"
    page = get(host, "/-/ready")
    assert (page.status, page.type) == (503, PLAIN)
    assert "xenstored at /run/xenstored/socket" in body(page).decode()
    assert get(host, "/-/healthy").status == 200
    assert "waits for xenstored at /run/xenstored/socket" in body(get(host, "/")).decode()


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 120])
def test_the_list_has_every_domain_once(count: int) -> None:
    domains = json.loads(body(get(many(count), "/api/v1/domains")))
    assert list(domains) == ["domains"]
    assert [domain["domid"] for domain in domains["domains"]] == list(range(1, count + 1))


def test_a_domain_that_goes_while_the_list_is_made_is_left_out() -> None:
    for gone in (range(1, 51), range(51, 101), range(1, 121)):
        host = many(120)
        page = get(host, "/api/v1/domains")
        assert not isinstance(page.body, bytes)
        text = b"" if gone[0] == 1 else next(filter(None, page.body))
        for domid in gone:
            del host.domains[domid]
        listed = [domain["domid"] for domain in json.loads(text + b"".join(page.body))["domains"]]
        assert listed == [domid for domid in range(1, 121) if domid not in gone]


def test_one_domain() -> None:
    host = StandInHost([StandInDomain(unplugged=3)])
    assert json.loads(body(get(host, "/api/v1/domains/7"))) == {**host.describe(7), "history": []}


@pytest.mark.parametrize("domid", ["8", "0", "65535", "07", "-7", "7 ", "+7", "7/", "seven", "٧", "9" * 5000, "7?x"])
def test_no_such_domain(domid: str) -> None:
    page = get(StandInHost([StandInDomain()]), f"/api/v1/domains/{domid}")
    assert (page.status, page.type) == (404, JSON)
    assert json.loads(body(page))["error"]


def test_the_status_is_the_services() -> None:
    host = StandInHost([StandInDomain()])
    host.awaited, host.problem = "xenstored", "journal: busy"
    host.counters.frames[KINDS.index("magic")] += 2
    host.counters.frames[KINDS.index("log")] += 1
    host.standing.refused("log.rate: \udc80")
    status = json.loads(body(get(host, "/api/v1/status")))
    assert (status["ready"], status["waiting_for"], status["problem"]) == (False, "xenstored", "journal: busy")
    assert (status["domains"], status["connections"], status["ioreqs"]) == (1, 3, 3)
    assert status["xenstore"] == {"connected": True, "reconnects": 0}
    assert status["blacklist"]["entries"] == 2
    assert status["configuration"]["refused"]["problem"] == "log.rate: \udc80"
    host.awaited = ""
    assert json.loads(body(get(host, "/api/v1/status")))["ready"] is True
