"""Who may connect to a domain's socket (contract sections 1 and 6)."""

from __future__ import annotations

import pwd
from types import SimpleNamespace

import pytest

from unplugd.sockets.access import ConnectionPolicy


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The users that this host has."""
    there: dict[str, int] = {}

    def getpwnam(name: str) -> SimpleNamespace:
        return SimpleNamespace(pw_uid=there[name])

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    return there


def test_root_may_always(users: dict[str, int]) -> None:
    assert ConnectionPolicy(None).allows(0, 7, None)
    assert ConnectionPolicy([1000]).allows(0, 7, None)


def test_the_uid_that_xenstore_names(users: dict[str, int]) -> None:
    access = ConnectionPolicy(None)
    assert access.device_model_uid(7, 1234) == 1234
    assert access.allows(1234, 7, 1234)
    assert not access.allows(1235, 7, 1234)
    assert not access.allows(1234, 7, None)


def test_a_uid_for_each_domain(users: dict[str, int]) -> None:
    users["xen-qemuuser-range-base"] = 131072
    access = ConnectionPolicy(None)
    assert access.device_model_uid(7, None) == 131079
    assert access.allows(131079, 7, None)
    assert not access.allows(131080, 7, None), "another domain's device model"
    assert not access.allows(131072, 7, None)
    assert access.allows(5, 7, 5), "xenstore knows better"
    assert not access.allows(131079, 7, 5)


def test_a_shared_uid_says_nothing_about_the_domain(users: dict[str, int]) -> None:
    users["xen-qemuuser-shared"] = 999
    assert not ConnectionPolicy(None).allows(999, 7, None)
    assert not ConnectionPolicy(None).allows(999, 7, 999)
    assert ConnectionPolicy(None).device_model_uid(7, 999) is None
    assert ConnectionPolicy([999]).allows(999, 7, 999), "unless listed"


def test_a_uid_that_two_domains_name_lets_neither_in_until_one_is_gone(users: dict[str, int]) -> None:
    access = ConnectionPolicy(None)
    assert access.learn(7, 1234) == {7}
    assert access.allows(1234, 7, 1234)
    assert access.learn(8, 1234) == {7, 8}, "both sockets change their owner"
    assert not access.allows(1234, 7, 1234)
    assert not access.allows(1234, 8, 1234)
    assert access.learn(8, None) == {7, 8}
    assert access.allows(1234, 7, 1234)
    assert access.learn(7, 5) == {7}
    assert not access.allows(1234, 7, 5)


def test_listed_uids(users: dict[str, int]) -> None:
    users["xen-qemuuser-range-base"] = 131072
    access = ConnectionPolicy([1000, 1001])
    assert access.device_model_uid(7, 5) == 1000, "the first of which owns the sockets"
    assert access.allows(1001, 7, None)
    assert not access.allows(131079, 7, None)
    assert not access.allows(5, 7, 5)
