"""Which code decides a run's numbers: the modules that it reaches inside the package, and their digest.

Imports are read from the syntax trees, nothing is executed. Names in the lazy registries are not followed: a run names
the entries that it uses (its network, similarity, dataset) as starting points, so a change of one loss concerns the
runs with that loss alone. Comments, docstrings and formatting do not count. Neither do the modules in `SETTINGS_ONLY`:
what a run takes from them stands in its resolved settings.
"""

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import deepsimreg

ROOT = Path(deepsimreg.__file__).resolve().parent.parent
SETTINGS_ONLY = {
    "deepsimreg.files",
    "deepsimreg.lazy",
    "deepsimreg.paths",
    "deepsimreg.losses.registry",
    "deepsimreg.models.registry",
    "deepsimreg.paper.baselines",
    "deepsimreg.paper.identity",
    "deepsimreg.paper.paths",
    "deepsimreg.paper.errors",
    "deepsimreg.paper.files",
    "deepsimreg.paper.plan",
    "deepsimreg.paper.reports",
    "deepsimreg.paper.resolve",
    "deepsimreg.paper.run",
    "deepsimreg.paper.settings",
}


def digest(content: Any) -> str:
    """Sixteen hex digits of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def code_digest(entries: Iterable[str]) -> str:
    """Digest of the code that modules, or files such as a chapter's twin, reach."""
    return digest({name: _source(_file(name)).digest for name in sorted(reached(entries))})


def reached(entries: Iterable[str]) -> set[str]:
    """The modules inside the package that entries import, directly and indirectly, and the entries themselves."""
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in SETTINGS_ONLY:
            found.add(name)
            waiting.extend(_imported(_file(name)))
    return found


def _file(name: str) -> Path:
    """The file of a module; a name that ends in .py is a path that starts at the project."""
    if name.endswith(".py"):
        return ROOT / name
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return name.startswith("deepsimreg") and _file(name).is_file()


class Source(NamedTuple):
    """What counts of a file."""

    digest: str  # of its syntax tree without docstrings
    imports: list[tuple[str, list[str]]]  # module, and the names that are taken from it
    lazy: dict[str, str]  # name → submodule of a package that attaches its names lazily (`lazy_loader.attach`)


def _source(path: Path) -> Source:
    """A file that is edited is read again."""
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, stamp: int) -> Source:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    imports, lazy = [], {}
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Import):
            imports += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.append((node.module, [alias.name for alias in node.names]))
        elif isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            lazy |= {name: module for module, names in ast.literal_eval(node.value).items() for name in names}
    return Source(digest(ast.unparse(tree)), imports, lazy)


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for module, names in _source(path).imports:
        if _is_module(module):
            lazy = _source(_file(module)).lazy if names else {}
            inner = [f"{module}.{lazy.get(name, name)}" for name in names]
            found |= {one if _is_module(one) else module for one in inner} or {module}
    return found
