"""Print the numbers that describe the code's shape, for one checkout or for several in columns.

    python tools/code_numbers.py [CHECKOUT ...]

The default is the checkout that this file lies in. The sources are parsed, never imported, so old checkouts work too.
"""

from __future__ import annotations

import ast
import graphlib
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping

PACKAGE = "advunlearn"
# A module imports only what stands before it. The package itself offers the public API, so it stands last.
ORDER = (
    *("errors", "files", "losses", "config", "formats", "miniature", "models", "prompts", "attacks", "judges"),
    *("training", "evaluation", "memory", "reporting", "cli", "__main__", ""),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Modules = Mapping[str, pathlib.Path]
Imports = Mapping[str, set[str]]


def find_modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the package's modules by their dotted names below the package, which is "" itself."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse_source(path: pathlib.Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def resolve_import(node: ast.ImportFrom, module: str, modules: Modules) -> set[str]:
    """Return the package's modules that `from ... import ...` in a module names."""
    target = (node.module or "").split(".") if node.module else []
    if node.level:
        is_package = modules[module].name == "__init__.py"
        parts = module.split(".") if module else []
        target = parts[: len(parts) - node.level + is_package] + target
    elif target[:1] == [PACKAGE]:
        target = target[1:]
    else:
        return set()
    # The version is the one name of the package itself that its modules may use.
    names = (".".join([*target, alias.name]) for alias in node.names if alias.name != "__version__")
    return {name if name in modules else ".".join(target) for name in names}


def walk(node: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """Yield a node and all below it; without `lazy` only those that run when the module is imported."""
    yield node
    for child in ast.iter_child_nodes(node):
        if lazy or not isinstance(child, Function):
            yield from walk(child, lazy)


def read_imports(modules: Modules, lazy: bool = True) -> dict[str, set[str]]:
    """Return the modules of the package that each one imports; with `lazy` those inside functions too."""
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for node in walk(parse_source(path), lazy):
            if isinstance(node, ast.ImportFrom):
                graph[module] |= resolve_import(node, module, modules)
            elif isinstance(node, ast.Import):
                names = (alias.name.partition(".") for alias in node.names)
                graph[module] |= {rest for first, _, rest in names if first == PACKAGE}
        graph[module].discard(module)
    return graph


def find_upward_imports(imports: Imports) -> list[str]:
    """Return the imports "a -> b" where b's folder stands after a's in `ORDER`, or not there at all."""
    rank = {name: i for i, name in enumerate(ORDER)}
    edges = ((a, b) for a, targets in imports.items() for b in targets)
    return sorted(
        f"{a} -> {b}" for a, b in edges if rank.get(a.partition(".")[0], 0) < rank.get(b.partition(".")[0], len(ORDER))
    )


def measure_depth(imports: Imports) -> int:
    """Return the number of modules in the longest chain of imports; raise CycleError for a circle."""
    depth: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(imports).static_order():
        depth[module] = 1 + max((depth[target] for target in imports.get(module, ())), default=0)
    return max(depth.values())


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield the functions and methods without a leading underscore, and the constructors of public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, Function) and (not node.name.startswith("_") or node.name == "__init__"):
            yield prefix + node.name, node


def count_parameters(function: Function) -> int:
    """Return the number of a function's parameters, without self."""
    args = function.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names) + bool(args.vararg) + bool(args.kwarg)


def count_words(root: pathlib.Path, pattern: str) -> int:
    """Return the number of words in the files that match."""
    return sum(len(path.read_text(encoding="utf-8").split()) for path in root.glob(pattern))


def count_in_sources(root: pathlib.Path, pattern: str) -> int:
    """Return how often a comment matches in all Python sources of a checkout."""
    folders = (PACKAGE, "nodes", "tests", "benchmarks", "tools")
    paths = (path for folder in folders for path in (root / folder).rglob("*.py"))
    return sum(len(re.findall(pattern, path.read_text(encoding="utf-8"))) for path in paths)


def measure(root: pathlib.Path) -> dict[str, str]:
    """Return the numbers of one checkout, by what they are."""
    modules = find_modules(root)
    trees = [parse_source(path) for path in modules.values()]
    imports, eager = read_imports(modules), read_imports(modules, lazy=False)
    spans = (
        (node.end_lineno or 0) - node.lineno + 1 for t in trees for node in ast.walk(t) if isinstance(node, Function)
    )
    lengths = sorted(spans)
    sources = [path.read_text(encoding="utf-8") for path in modules.values()]
    lines = sum(bool(line.strip()) for source in sources for line in source.splitlines())
    any_uses = sum(len(re.findall(r"\bAny\b", source)) for source in sources)
    widest = max((count_parameters(f), name) for tree in trees for name, f in public_functions(tree.body))
    known = all(name.partition(".")[0] in ORDER for name in modules)
    return {
        "modules directly in the package": str(len(list((root / PACKAGE).glob("*.py")))),
        "modules in all": str(len(modules)),
        "import depth": f"{measure_depth(eager)} ({measure_depth(imports)} with lazy ones)",
        "upward imports": str(len(find_upward_imports(imports))) if known else "(other folders)",
        "functions, mean lines": f"{sum(lengths) / len(lengths):.1f}",
        "functions, 90th percentile": str(lengths[math.ceil(0.9 * len(lengths)) - 1]),
        "functions, longest": str(lengths[-1]),
        "fmt: skip": str(count_in_sources(root, r"#\s*fmt:\s*skip")),
        "Any per 1,000 lines": f"{1000 * any_uses / lines:.1f}",
        "most parameters": f"{widest[0]} ({widest[1]})",
        "words of README": str(count_words(root, "README.md")),
        "words of docs": str(count_words(root, "docs/**/*.md")),
    }


def main(checkouts: list[str]) -> None:
    """Print one column for each checkout."""
    roots = [pathlib.Path(checkout) for checkout in checkouts] or [pathlib.Path(__file__).parents[1]]
    columns = [measure(root) for root in roots]
    print(f"{'':34}" + "".join(f"{root.resolve().name:28}" for root in roots))
    for name in columns[0]:
        print(f"{name:34}" + "".join(f"{column[name]:28}" for column in columns))


if __name__ == "__main__":
    main(sys.argv[1:])
