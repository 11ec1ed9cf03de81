"""The source files that a product depends on, so that a workflow can rerun a cheap stage when one of them changes."""

import ast
from collections.abc import Iterator
from pathlib import Path

from nested_reft.config.sections import PACKAGE


def imported_modules(source: str) -> Iterator[str]:
    """Yield the dotted name of every module of this package that the source imports, also within functions.

    `from a import b` yields both `a` and `a.b`, because b may be a module. Imports for type checkers are left out.
    """
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] == PACKAGE.name)
        # An import is a statement, so that expressions, most of the tree, need no search.
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


def source_files(folder: str) -> list[Path]:
    """Return every file of a folder of the package, and every module that they import directly or indirectly.

    Args:
        folder: a folder of the package, such as `report`.

    Returns:
        Sorted paths. Files that are not Python, such as templates, are part of the folder.
    """
    found: set[Path] = set()
    waiting = [path for path in (PACKAGE / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            for name in imported_modules(path.read_text()):
                module = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
                waiting += [file for file in (module, module.with_suffix("") / "__init__.py") if file.is_file()]
    return sorted(found)
