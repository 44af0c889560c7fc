"""A xenstore's tree in memory: nodes, permissions, transactions (xen.git, docs/misc/xenstore.txt).

Pure: no asyncio, no watches. Changed paths are collected, and `embedded` makes events of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from unplugd.errors import NoSuchNode, TransactionConflict


class Node:
    """One node. `changed` is the number of its last change."""

    __slots__ = ("changed", "children", "permissions", "value")

    def __init__(self, value: bytes, permissions: tuple[str, ...], changed: int = 0) -> None:
        self.value = value
        self.permissions = permissions
        self.children: dict[str, None] = {}
        self.changed = changed

    def copy(self) -> Node:
        """A copy of the node."""
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
    """The requests, on the nodes that `get` and `put` access: those of the tree or of a transaction."""

    def __init__(self) -> None:
        self.touched: list[tuple[str, bool]] = []
        """The changed paths, in order. True: only a watch of exactly this path gets an event (the node was removed
        together with one above it)."""

    @abstractmethod
    def get(self, path: str) -> Node | None:
        """The node. A caller that changes it must put() it back."""

    @abstractmethod
    def put(self, path: str, node: Node | None) -> None:
        """Replace the node; None removes it."""

    def node(self, path: str) -> Node:
        """The node. NoSuchNode."""
        node = self.get(path)
        if node is None:
            raise NoSuchNode(path)
        return node

    def write(self, path: str, value: bytes) -> None:
        """Set a value; missing nodes are created."""
        node = self.get(path)
        if node is None:
            node = self._make(path)
        node.value = value
        self.put(path, node)
        self.touched.append((path, False))

    def remove(self, path: str) -> None:
        """Remove a node and all below it. Raises NoSuchNode only if its parent is missing too, and for "/"."""
        if path == "/":
            raise NoSuchNode(path)
        if self.get(path) is None:
            self.node(parent_of(path))
            return
        parent = self.node(parent_of(path))
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
        node = self.node(path)
        node.permissions = tuple(permissions)
        self.put(path, node)
        self.touched.append((path, False))

    def _make(self, path: str) -> Node:
        parent = self.get(parent_of(path))
        if parent is None:
            parent = self._make(parent_of(path))
        parent.children[name_of(path)] = None
        self.put(parent_of(path), parent)
        node = Node(b"", parent.permissions)
        self.put(path, node)
        return node


class Tree(View):
    """All committed nodes."""

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
        """The nodes read so far: the number of their last change, None for a missing node."""
        self._nodes: dict[str, Node | None] = {}
        self._put: dict[str, None] = {}

    def get(self, path: str) -> Node | None:
        """`View.get`: repeated reads give the same result."""
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
        """Commit the changes. Raises TransactionConflict, and changes nothing, if a node has changed since it was read.
        """
        for path, changed in self._found.items():
            node = self._tree.get(path)
            if (node.changed if node else None) != changed:
                raise TransactionConflict(f"another client changed {path}")
        for path in self._put:
            self._tree.put(path, self._nodes[path])
        self._tree.touched += self.touched
