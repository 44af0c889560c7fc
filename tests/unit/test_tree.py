"""The embedded store's tree against a plain model of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.errors import NoSuchNode, TransactionConflict
from unplugd.xenstore.tree import Transaction, Tree, View

paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
steps = st.lists(st.tuples(st.sampled_from(["write", "remove"]), paths, st.binary(max_size=3)), max_size=12)
Step = tuple[str, str, bytes]


def apply(view: View, step: Step) -> bool:
    kind, path, value = step
    try:
        if kind == "write":
            view.write(path, value)
        else:
            view.remove(path)
    except NoSuchNode:
        return False
    return True


def content(view: View, path: str = "/") -> dict[str, bytes]:
    """All values, found by walking through the directories."""
    node = view.node(path)
    found = {path: node.value}
    for name in node.children:
        found |= content(view, f"{path.rstrip('/')}/{name}")
    return found


def model(before: dict[str, bytes], step: Step) -> dict[str, bytes]:
    kind, path, value = step
    after = dict(before)
    if kind == "remove":
        return {each: v for each, v in after.items() if each != path and not each.startswith(path + "/")}
    parts = path.split("/")
    for end in range(2, len(parts)):
        after.setdefault("/".join(parts[:end]), b"")
    after[path] = value
    return after


@given(steps)
def test_writes_and_removals_are_what_a_plain_mapping_would_hold(done: list[Step]) -> None:
    tree, expected = Tree(), {"/": b""}
    for step in done:
        parent = step[1].rpartition("/")[0] or "/"
        assert apply(tree, step) == (step[0] == "write" or parent in expected)
        expected = model(expected, step)
        assert content(tree) == expected


@given(steps, steps, steps)
def test_a_transaction_is_all_or_nothing(
    before: list[Step], inside: list[Step], meanwhile: list[Step]
) -> None:
    tree = Tree()
    for step in before:
        apply(tree, step)
    transaction = Transaction(tree)
    alone = Tree()
    for step in before:
        apply(alone, step)
    for step in inside:
        assert apply(transaction, step) == apply(alone, step)
    for step in meanwhile:
        apply(tree, step)
    untouched = content(tree)
    try:
        transaction.commit()
    except TransactionConflict:
        assert meanwhile
        assert content(tree) == untouched
    else:
        if not meanwhile:
            assert content(tree) == content(alone)
        # What it wrote stands, and every node is still found where its parent says.
        assert set(content(tree)) == set(tree._nodes)


@given(paths, paths)
def test_a_read_that_was_overtaken_is_a_conflict(path: str, other: str) -> None:
    tree = Tree()
    tree.write(path, b"1")
    transaction = Transaction(tree)
    transaction.node(path)
    transaction.write("/z", b"")
    tree.write(path, b"2")
    with pytest.raises(TransactionConflict):
        transaction.commit()
    assert tree.get("/z") is None


def test_who_finds_a_node_absent_conflicts_with_who_makes_it() -> None:
    tree = Tree()
    transaction = Transaction(tree)
    with pytest.raises(NoSuchNode):
        transaction.node("/a")
    tree.write("/a", b"")
    with pytest.raises(TransactionConflict):
        transaction.commit()


def test_a_listing_conflicts_with_a_new_child() -> None:
    tree = Tree()
    tree.write("/a/b", b"")
    transaction = Transaction(tree)
    assert list(transaction.node("/a").children) == ["b"]
    tree.write("/a/c", b"")
    with pytest.raises(TransactionConflict):
        transaction.commit()


def test_the_root_stays() -> None:
    tree = Tree()
    with pytest.raises(NoSuchNode):
        tree.remove("/")
    tree.write("/", b"x")
    assert tree.node("/").value == b"x"


def test_what_was_changed_is_told_in_order() -> None:
    tree = Tree()
    tree.write("/a/b/c", b"")
    tree.set_permissions("/a/b", ["n0"])
    tree.remove("/a")
    tree.remove("/a")
    assert tree.touched == [
        ("/a/b/c", False),
        ("/a/b", False),
        ("/a", False),
        ("/a/b", True),
        ("/a/b/c", True),
    ]
