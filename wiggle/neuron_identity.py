"""
The identity of a user's neuron: its class with all that it uses, wherever that stands, and nothing else of its file.

From the class's source each name is followed to what a module's top level binds it to (functions, constants, classes
and their bases), and on from there, into other files too, unless they are installed, Python's own or this project's.
Comments, docstrings and layout are left out. What is reached by a string alone (getattr, globals) or read from a data
file is not seen.
"""

import ast
import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# A neuron that builds on the project's own modules is not another one with each change to them: compare.py finds a
# change that matters by repeating the first losses of finished runs.
PROJECT = {"analyze_bio", "bench", "compare", "experiment", "export", "kernels", "model_bio", "prepare_data"}
PROJECT |= {"sample_bio", "train", "wiggle"}


class Target(NamedTuple):
    """What an import binds a name to: a module, or what is called `name` in it."""

    module: str
    name: str | None


class Piece(NamedTuple):
    """A statement at a module's top level, or one name of an import."""

    label: str  # what a person would call it: "function f"
    node: ast.AST
    target: Target | None = None  # of an import


def identify(path: str, name: str) -> tuple[str, dict[str, str]]:
    """
    What `name` in the file `path`, which has been imported, is made of -> (SHA-256, {piece: short hash}).

    A piece is called as a person would: "class Wave", and with its file where that is another: "helper.py function f".
    Neither hash depends on where the files lie, nor on the first one's name.
    """
    collector = Collector(Path(path))
    collector.follow(read_source(path, ""), name)
    collector.add_touching()
    parts = {label: short_hash("\n".join(texts)) for label, texts in sorted(collector.texts.items())}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest(), parts


def short_hash(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The pieces of two identities that differ, each with what became of it."""
    found = []
    for label in sorted(before | now):
        if label not in now:
            found.append(f"{label} (no longer used)")
        elif label not in before:
            found.append(f"{label} (not used before)")
        elif before[label] != now[label]:
            found.append(label)
    return found


# --- a file's top level ---


class Source:
    """What the top level of a file binds, and what else it does there."""

    def __init__(self, path: str, module: str, tree: ast.Module):
        self.path, self.module = path, module  # module: the dotted name it is imported by; "" for the neuron's file
        self.package = module if Path(path).name == "__init__.py" else module.rpartition(".")[0]
        self.bindings = defaultdict(list)  # name -> [Piece]
        self.touching = []  # pieces that may change what others bound, as TABLE.append(1) does
        self.stars = []  # modules of `from module import *`
        for statement in tree.body:
            self._read(statement)

    def _read(self, statement):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for name, piece in self.imported(statement):
                self.bindings[name].append(piece)
            return
        if isinstance(statement, DEFINITIONS):
            kind = "class" if isinstance(statement, ast.ClassDef) else "function"
            self.bindings[statement.name].append(Piece(f"{kind} {statement.name}", statement))
            return
        if is_main_guard(statement) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            return
        bound = sorted(bound_names(statement))
        label = f"assignment of {', '.join(bound)}" if bound else f"statement {ast.unparse(statement)[:40]}"
        piece = Piece(label, statement)
        for name in bound:
            self.bindings[name].append(piece)
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not bound:
            self.touching.append(piece)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Piece]]:
        """(name, Piece) for each name that an import binds; those of a star are noted apart."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                module = alias.name if alias.asname else name
                yield name, Piece(f"import of {name}", ast.Import([alias]), Target(module, None))
            return
        module = statement.module or ""
        if statement.level:
            with contextlib.suppress(ImportError):  # Python would have said so already
                module = importlib.util.resolve_name("." * statement.level + module, self.package or None)
        for alias in statement.names:
            if alias.name == "*":
                self.stars.append(module)
                continue
            name, node = alias.asname or alias.name, ast.ImportFrom(statement.module, [alias], statement.level)
            inner = f"{module}.{alias.name}"
            target = Target(inner, None) if is_module(inner) else Target(module, alias.name)
            yield name, Piece(f"import of {name}", node, target)


def read_source(path: str, module: str) -> Source:
    """Read a file's top level."""
    return Source(path, module, ast.parse(Path(path).read_bytes()))


def is_main_guard(statement: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__"`, which an import passes over."""
    return isinstance(statement, ast.If) and "__name__" in {n.id for n in ast.walk(statement.test) if is_name(n)}


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement binds, those inside its branches too."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, DEFINITIONS):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found


# --- modules ---


def is_module(name: str) -> bool:
    """Whether a dotted name is that of a module."""
    return name in sys.modules or find_spec(name) is not None


def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """importlib's spec of a module that need not be imported yet, or None."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def followed_file(name: str) -> str | None:
    """The file of a module that belongs to a user's neuron; None where it is installed, Python's or this project's."""
    if name.partition(".")[0] in PROJECT:
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and (spec := find_spec(name)) is not None:
        file = spec.origin
    if not file or not file.endswith(".py"):
        return None
    parts, python = Path(file).resolve().parts, Path(sysconfig.get_paths()["stdlib"]).resolve()
    installed = {"site-packages", "dist-packages"} & set(parts)
    return None if installed or python in Path(file).resolve().parents else file


# --- what is used ---


class Collector:
    """Follows names from one statement to the next, and keeps the text of each."""

    def __init__(self, path: Path):
        self.path = path
        self.texts = defaultdict(list)  # label -> texts of the pieces that are called so
        self.sources = {}  # by file
        self.seen = set()  # (file, name) that were followed, and the id of each statement that was added

    def follow(self, source: Source, name: str) -> None:
        """Add what a file's top level binds a name to, and all that this uses."""
        if (source.path, name) in self.seen:
            return
        self.seen.add((source.path, name))
        self.sources[source.path] = source
        for piece in source.bindings.get(name, []):
            self.add(source, piece)
        if name not in source.bindings:
            for module in source.stars:
                other = self.load(module)
                if other and (name in other.bindings or other.stars):
                    self.follow(other, name)

    def add(self, source: Source, piece: Piece) -> None:
        """Keep a piece's text, and follow what it uses."""
        if id(piece.node) in self.seen:
            return
        self.seen.add(id(piece.node))
        file = "" if not source.module else f"{os.path.relpath(source.path, self.path.parent)} ".replace(os.sep, "/")
        self.texts[file + piece.label].append(plain_text(piece.node))
        if piece.target:
            self.enter(piece.target.module, [piece.target.name] if piece.target.name else None)
            return
        for chain in dotted_names(piece.node):
            self.follow_chain(source, chain)
        for node in ast.walk(piece.node):  # imports inside a function or a branch
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for _, inner in source.imported(node):
                    self.enter(inner.target.module, [inner.target.name] if inner.target.name else [])

    def follow_chain(self, source: Source, chain: list[str]) -> None:
        """a.b.c as it is used in a file: a name of it, or what lies in a module that is imported there."""
        root, *attributes = chain
        self.follow(source, root)
        for piece in source.bindings.get(root, []):
            if piece.target and piece.target.name is None:
                self.enter(piece.target.module, attributes)

    def enter(self, module: str, attributes: list[str] | None) -> None:
        """Follow module.a.b, whose first parts may be modules; with [] all of the module, with None nothing yet."""
        while attributes and is_module(f"{module}.{attributes[0]}"):
            module, attributes = f"{module}.{attributes[0]}", attributes[1:]
        source = self.load(module)
        if source is None or attributes is None:
            return
        for name in attributes[:1] or list(source.bindings):
            self.follow(source, name)

    def load(self, module: str) -> Source | None:
        """The source of a module, where it belongs to the neuron."""
        file = followed_file(module)
        if file and file not in self.sources:
            self.sources[file] = read_source(file, module)
        return self.sources.get(file)

    def add_touching(self) -> None:
        """Add the statements that mention what is used, and may have changed it, until there are no more."""
        count = -1
        while count != len(self.seen):
            count = len(self.seen)
            for source in list(self.sources.values()):
                for piece in source.touching:
                    roots = {chain[0] for chain in dotted_names(piece.node)} & set(source.bindings)
                    if any((source.path, root) in self.seen for root in roots):
                        self.add(source, piece)


def dotted_names(node: ast.AST) -> Iterator[list[str]]:
    """Each a.b.c below a node, as ['a', 'b', 'c']."""
    names, inner = [], node
    while isinstance(inner, ast.Attribute):
        names.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *names]
        return
    for child in ast.iter_child_nodes(inner if names else node):
        yield from dotted_names(child)


def plain_text(node: ast.AST) -> str:
    """A statement without comments, docstrings and layout."""
    node = copy.deepcopy(node)
    for inner in ast.walk(node):
        if isinstance(inner, DEFINITIONS) and ast.get_docstring(inner, clean=False) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(node))
