"""The map of the code: the folders of the library in their order, and names that mean one thing."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

from code_numbers import ORDER, PACKAGE, find_modules, find_upward_imports, measure_depth, parse_source, read_imports

ROOT = pathlib.Path(__file__).parents[2]
MODULES = find_modules(ROOT)
# Names that every module of a kind defines, since a caller looks for them there.
INTERFACES = {"cli.commands": {"add_parser", "run"}}


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Yield the public functions, classes and constants of a module; type variables and aliases count as well."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def test_every_module_lies_in_a_folder_of_the_map() -> None:
    assert {name.partition(".")[0] for name in MODULES} <= set(ORDER)
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= 8


def test_no_import_runs_upward_not_even_a_lazy_one() -> None:
    assert find_upward_imports(read_imports(MODULES)) == []


def test_no_modules_import_each_other_in_a_circle_not_even_lazily() -> None:
    assert measure_depth(read_imports(MODULES)) <= 18  # a circle is an error


def test_a_public_name_is_defined_in_one_module() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        allowed = INTERFACES.get(module.rpartition(".")[0], set())
        for name in set(defined_names(parse_source(path))) - allowed:
            places.setdefault(name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_no_line_is_kept_from_the_formatter() -> None:
    sources = (
        p for folder in (PACKAGE, "nodes", "tests", "benchmarks", "tools") for p in (ROOT / folder).rglob("*.py")
    )
    assert [str(p) for p in sources if re.search(r"#\s*fmt:\s*(skip|off)", p.read_text(encoding="utf-8"))] == []
