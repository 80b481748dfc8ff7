"""What a disk may hold after a power loss, from the operations that were asked of it.

A change of a file or folder lasts once that file or folder was synced after it. Until then it may
be there or not, whatever came before or after it elsewhere; of a write maybe only a beginning.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from watched_disk import Operation

SECTOR = 512


@dataclass(eq=False)
class Effect:
    """One change of a node: bytes of a file, or names of a folder (None: the name is gone)."""

    offset: int = 0
    data: bytes = b""
    cut: bool = False
    names: "Mapping[str, Node | None]" = field(default_factory=dict)
    lasting: bool = False


@dataclass(eq=False)
class Node:
    """A file or a folder, and all that was ever done to it."""

    is_folder: bool
    effects: list[Effect] = field(default_factory=list)

    @property
    def pending(self) -> list[Effect]:
        """What a power loss may undo."""
        return [effect for effect in self.effects if not effect.lasting]


Kept = Mapping[Effect, bytes]
"""Which pending effects a loss spares, and what of their bytes."""


class Drive:
    """A disk that does what it is asked below `root`, and knows what of it lasts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = Node(is_folder=True)
        self._nodes = [self._top]

    def do(self, operation: Operation) -> None:
        """Applies an operation."""
        parent, name = self._folder(operation.path), operation.path.name
        match operation.kind:
            case "make_folder" | "create":
                node = Node(is_folder=operation.kind == "make_folder")
                self._nodes.append(node)
                parent.effects.append(Effect(names={name: node}))
            case "write" | "truncate":
                cut = operation.kind == "truncate"
                effect = Effect(operation.offset, operation.data, cut)
                self._node(operation.path).effects.append(effect)
            case "sync" | "sync_folder":
                for effect in self._node(operation.path).effects:
                    effect.lasting = True
            case "rename":
                assert operation.target is not None
                node = self._node(operation.path)
                parent.effects.append(Effect(names={name: None}))
                target = self._folder(operation.target)
                target.effects.append(Effect(names={operation.target.name: node}))
            case "remove" | "remove_folder":
                parent.effects.append(Effect(names={name: None}))

    def losses(self) -> Iterator[Kept]:
        """What a loss now may spare: all, nothing, and each node's changes with and without it.

        Of each node's last write also the beginning only.
        """
        pending = {node: node.pending for node in self._nodes if node.pending}
        everything = [effect for effects in pending.values() for effect in effects]
        yield _whole(everything)
        yield {}
        for effects in pending.values():
            yield _whole(effects)
            yield _whole(effect for effect in everything if effect not in effects)
            yield _whole(effect for effect in everything if effect is not effects[-1])
            for size in _beginnings(effects[-1].data):
                yield {**_whole(everything), effects[-1]: effects[-1].data[:size]}

    def write(self, kept: Kept, folder: Path) -> None:
        """Puts what a loss has left into a real folder that is empty."""
        self._write(self._top, kept, folder)

    def fingerprint(self, kept: Kept) -> frozenset[tuple[int, int]]:
        """The same for losses that leave the same: which effects there are, and how long."""
        lasting = (effect for node in self._nodes for effect in node.effects if effect.lasting)
        there = {effect: len(effect.data) for effect in lasting}
        there |= {effect: len(data) for effect, data in kept.items()}
        return frozenset((id(effect), size) for effect, size in there.items())

    # ---- steps of them

    def _node(self, path: Path) -> Node:
        node = self._top
        for part in path.relative_to(self._root).parts:
            node = _names(node, node.effects)[part]
        return node

    def _folder(self, path: Path) -> Node:
        return self._top if path == self._root else self._node(path.parent)

    def _write(self, node: Node, kept: Kept, path: Path) -> None:
        for name, inner in _names(node, _left(node, kept)).items():
            if inner.is_folder:
                (path / name).mkdir()
                self._write(inner, kept, path / name)
            else:
                (path / name).write_bytes(_content(inner, kept))


def _whole(effects: Iterable[Effect]) -> dict[Effect, bytes]:
    return {effect: effect.data for effect in effects}


def _beginnings(data: bytes) -> Collection[int]:
    """How much of a write may have come: whole sectors, or half of what is less than one."""
    sectors = len(data) // SECTOR
    if sectors < 2:
        return {len(data) // 2} - {0}
    return {SECTOR, SECTOR * (sectors // 2), SECTOR * (sectors - 1)}


def _left(node: Node, kept: Kept) -> list[Effect]:
    return [effect for effect in node.effects if effect.lasting or effect in kept]


def _names(node: Node, effects: Iterable[Effect]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for effect in effects:
        for name, inner in effect.names.items():
            if inner is None:
                found.pop(name, None)
            else:
                found[name] = inner
    return found


def _content(node: Node, kept: Kept) -> bytes:
    content = bytearray()
    for effect in _left(node, kept):
        if effect.cut:
            del content[effect.offset :]
            continue
        data = effect.data if effect.lasting else kept[effect]
        content.extend(bytes(max(0, effect.offset - len(content))))
        content[effect.offset : effect.offset + len(data)] = data
    return bytes(content)
