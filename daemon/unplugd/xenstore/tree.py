"""A xenstore's tree in memory: nodes, permissions, transactions (xen.git, docs/misc/xenstore.txt).

Pure: no asyncio, no watches. A change is told by its path, and `embedded` makes events of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from unplugd.errors import NoSuchNode, TransactionConflict


class Node:
    """One node. `changed` is the number of the change that made it what it is."""

    __slots__ = ("changed", "children", "permissions", "value")

    def __init__(self, value: bytes, permissions: tuple[str, ...], changed: int = 0) -> None:
        self.value = value
        self.permissions = permissions
        self.children: dict[str, None] = {}
        self.changed = changed

    def copy(self) -> Node:
        """Another node with the same content."""
        node = Node(self.value, self.permissions, self.changed)
        node.children = dict(self.children)
        return node


def parent_of(path: str) -> str:
    """The path above; "/" for "/name"."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]


class View(ABC):
    """What all requests do, on nodes that `get` and `put` reach: the tree's own or a transaction's."""

    def __init__(self) -> None:
        self.touched: list[tuple[str, bool]] = []
        """What was changed, in order: its path, and whether only a watch of just this path is told (a node that went
        with one above it)."""

    @abstractmethod
    def get(self, path: str) -> Node | None:
        """The node, to be looked at."""

    @abstractmethod
    def put(self, path: str, node: Node | None) -> None:
        """Replace the node; None takes it away."""

    def node(self, path: str) -> Node:
        """The node. NoSuchNode."""
        node = self.get(path)
        if node is None:
            raise NoSuchNode(path)
        return node

    def write(self, path: str, value: bytes) -> None:
        """Set a value, making the node and its parents where they are not."""
        node = self.get(path)
        if node is None:
            node = self._make(path)
        node = node.copy()
        node.value = value
        self.put(path, node)
        self.touched.append((path, False))

    def remove(self, path: str) -> None:
        """Take a node away with all below it. NoSuchNode only if its parent is not there either, and for "/"."""
        if path == "/":
            raise NoSuchNode(path)
        if self.get(path) is None:
            self.node(parent_of(path))
            return
        parent = self.node(parent_of(path)).copy()
        del parent.children[name_of(path)]
        self.put(parent_of(path), parent)
        gone = [path]
        for each in gone:
            gone += [f"{each}/{name}" for name in self.node(each).children]
        for each in reversed(gone):
            self.put(each, None)
        self.touched += [(each, each != path) for each in gone]

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Replace a node's permissions. NoSuchNode."""
        node = self.node(path).copy()
        node.permissions = tuple(permissions)
        self.put(path, node)
        self.touched.append((path, False))

    def _make(self, path: str) -> Node:
        parent = self.get(parent_of(path))
        if parent is None:
            parent = self._make(parent_of(path))
        parent = parent.copy()
        parent.children[name_of(path)] = None
        self.put(parent_of(path), parent)
        node = Node(b"", parent.permissions)
        self.put(path, node)
        return node


class Tree(View):
    """All nodes as everybody sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0
        self._nodes = {"/": Node(b"", ("n0",))}

    def get(self, path: str) -> Node | None:
        """`View.get`."""
        return self._nodes.get(path)

    def put(self, path: str, node: Node | None) -> None:
        """`View.put`."""
        self.changes += 1
        if node is None:
            self._nodes.pop(path, None)
        else:
            node.changed = self.changes
            self._nodes[path] = node


class Transaction(View):
    """A view of a tree that keeps its changes to itself until `commit`."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree
        self._found: dict[str, int | None] = {}
        """What was looked at: the number of its last change then, None for a node that was not there."""
        self._nodes: dict[str, Node | None] = {}
        self._put: dict[str, None] = {}

    def get(self, path: str) -> Node | None:
        """`View.get`: what was found once stays what it was."""
        if path not in self._nodes:
            node = self._tree.get(path)
            self._found[path] = node.changed if node else None
            self._nodes[path] = node.copy() if node else None
        return self._nodes[path]

    def put(self, path: str, node: Node | None) -> None:
        """`View.put`."""
        self._nodes[path] = node
        self._put[path] = None

    def commit(self) -> None:
        """Make the changes everybody's. TransactionConflict, and nothing done, if what was found is not so any more."""
        for path, changed in self._found.items():
            node = self._tree.get(path)
            if (node.changed if node else None) != changed:
                raise TransactionConflict(f"{path} was changed by somebody else")
        for path in self._put:
            self._tree.put(path, self._nodes[path])
        self._tree.touched += self.touched
