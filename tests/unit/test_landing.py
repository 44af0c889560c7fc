"""The page at `/`: what is on it, that it is whole, and that nobody's name is more than text there."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from tests.lab.hostview import StandInDomain, StandInHost, many
from tests.unit.test_pages import body, get

VOID = {"meta", "br"}


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_landing_page_takes_nothing_from_elsewhere_and_its_policy_lets_its_style_through() -> None:
    page = get(StandInHost([StandInDomain(unplugged=3, blacklisted=True, verdict="refused", product=3, build=1)]), "/")
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
    assert {"0.1.0", "ready", "web-01", "blacklisted", "ide-disks, nics", "linux"} <= set(seen.text)


def test_the_landing_page_links_what_is_served_there() -> None:
    host = StandInHost([StandInDomain()])
    for everything in (False, True):
        tags = Seen(body(get(host, "/", everything=everything))).tags
        links = [attributes["href"] for tag, attributes in tags if tag == "a"]
        assert "/metrics" in links
        assert ("/api/v1/domains" in links) is everything
        for link in links:
            assert get(host, link or "", everything=everything).status == 200


def test_every_element_is_closed() -> None:
    for everything in (False, True):
        assert Seen(body(get(many(60), "/", everything=everything))).open == []


def test_the_guests_are_a_table_in_words() -> None:
    host = StandInHost([
        StandInDomain(7, product=3, build=1, verdict="allowed", unplugged=3, log_lines=1),
        StandInDomain(8, product=4660, build=9, blacklisted=True, verdict="ignored",
                      dropped_lines={"rate-limit": 2, "sink": 1}),
        StandInDomain(9),
    ])  # fmt: skip
    rows = re.findall(r"<tr>(<td>.*)</tr>", body(get(host, "/")).decode())
    plain = [[re.sub(r"<[^>]*>", "", cell) for cell in row.removeprefix("<td>").split("<td>")] for row in rows]
    assert plain == [
        ["7", "web-01", "linux", "1", "allowed", "ide-disks, nics", "1 line"],
        ["8", "web-01", "product 4660", "9", "ignored", "-", "3 dropped"],
        ["9", "web-01", "-", "-", "-", "-", "-"],
    ]
    assert "unplugctl list" in body(get(host, "/", everything=False)).decode()


def test_what_cannot_be_seen_is_escaped() -> None:
    host = StandInHost([StandInDomain(name="a\x1b[2J\u202eb\udcff\ud800")])
    text = body(get(host, "/")).decode()
    assert "a\\x1b[2J" in text
    assert not set("\x1b\u202e") & set(text)


def test_a_guest_that_goes_while_the_page_is_made_is_left_out() -> None:
    host = many(60)
    page = get(host, "/")
    assert not isinstance(page.body, bytes)
    pieces = filter(None, page.body)
    first = [next(pieces), next(pieces)]
    host.domains.clear()
    assert b"/api/v1/domains/1\"" not in b"".join([*first, *page.body])


@given(st.text(max_size=60) | st.text(alphabet="<>&\"'/scriptab=\x00\udc80", max_size=60))
def test_a_name_is_text_on_the_landing_page(name: str) -> None:
    plain = Seen(body(get(StandInHost([StandInDomain(name="x")]), "/"))).tags
    assert Seen(body(get(StandInHost([StandInDomain(name=name)]), "/"))).tags == plain
