"""What each route answers, without a connection."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.hostview import StandInDomain, StandInHost, many
from unplugd.exposition import OPENMETRICS, TEXT
from unplugd.pages import HTML, JSON, PLAIN, Page, Pages

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
        text = b"" if gone[0] == 1 else next(page.body)
        for domid in gone:
            del host.domains[domid]
        listed = [domain["domid"] for domain in json.loads(text + b"".join(page.body))["domains"]]
        assert listed == [domid for domid in range(1, 121) if domid not in gone]


def test_one_domain() -> None:
    host = StandInHost([StandInDomain(unplugged=3)])
    assert json.loads(body(get(host, "/api/v1/domains/7"))) == {
        "domid": 7, "uuid": "4f0e0c5e-0000-4000-8000-000000000007", "name": "web-01", "unplugged": 3,
        "history": [],
    }  # fmt: skip


@pytest.mark.parametrize("domid", ["8", "0", "65535", "07", "-7", "7 ", "+7", "7/", "seven", "٧", "9" * 5000, "7?x"])
def test_no_such_domain(domid: str) -> None:
    page = get(StandInHost([StandInDomain()]), f"/api/v1/domains/{domid}")
    assert (page.status, page.type) == (404, JSON)
    assert json.loads(body(page))["error"]


def test_the_status_is_the_services() -> None:
    host = StandInHost([StandInDomain()])
    host.awaited, host.problem = "xenstored", "journal: busy"
    host.counters.ioreqs["magic"] += 2
    host.counters.ioreqs["log"] += 1
    host.standing.refused("log.rate: \udc80")
    status = json.loads(body(get(host, "/api/v1/status")))
    assert (status["ready"], status["waiting_for"], status["problem"]) == (False, "xenstored", "journal: busy")
    assert (status["domains"], status["connections"], status["ioreqs"]) == (1, 3, 3)
    assert status["xenstore"] == {"connected": True, "reconnects": 0}
    assert status["blacklist"]["entries"] == 2
    assert status["configuration"]["refused"]["problem"] == "log.rate: \udc80"
    host.awaited = ""
    assert json.loads(body(get(host, "/api/v1/status")))["ready"] is True


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_landing_page_takes_nothing_from_elsewhere_and_its_policy_lets_its_style_through() -> None:
    page = get(StandInHost([StandInDomain(unplugged=3, blacklisted=True, product=3, build=1)]), "/")
    seen = Seen(body(page))
    assert not {tag for tag, _ in seen.tags} & {"script", "img", "link", "iframe", "object", "base", "form"}
    for _, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        assert (attributes.get("href") or "/").startswith("/")
    (style,) = re.findall(rb"<style>(.*)</style>", body(get(StandInHost(), "/")), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    policy = dict(page.headers)["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script-src" not in policy
    assert {"0.1.0", "ready", "web-01", "blacklisted", "ide-disks, nics"} <= set(seen.text)


def test_the_landing_page_links_what_is_served_there() -> None:
    host = StandInHost([StandInDomain()])
    for everything in (False, True):
        tags = Seen(body(get(host, "/", everything=everything))).tags
        links = [attributes["href"] for tag, attributes in tags if tag == "a"]
        assert "/metrics" in links
        assert ("/api/v1/domains" in links) is everything
        for link in links:
            assert get(host, link or "", everything=everything).status == 200


@given(st.text(max_size=60) | st.text(alphabet="<>&\"'/scriptab=\x00\udc80", max_size=60))
def test_a_name_is_text_on_the_landing_page(name: str) -> None:
    plain = Seen(body(get(StandInHost([StandInDomain(name="x")]), "/"))).tags
    assert Seen(body(get(StandInHost([StandInDomain(name=name)]), "/"))).tags == plain
