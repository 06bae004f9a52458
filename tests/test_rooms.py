import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "slide_mm"
ROOMS = (
    *("ops", "layers", "checkpoints", "models", "datasets"),
    *("data_checks", "engine", "new_config", "packing", "inference", "export", "analysis"),
)


def imports_of(path):
    """Modules of this package that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1:] for name in names if name.startswith("slide_mm."))


def module_of(parts):
    """The file that a dotted name leads to."""
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:length])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return PACKAGE / "__init__.py"


FILES = {path: list(imports_of(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0]


def test_an_import_never_goes_up():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {'.'.join(parts)}"
        for path, imports in FILES.items()
        for parts in imports
        if room_of(path) in ROOMS
        and parts[0] in ROOMS
        and ROOMS.index(parts[0]) > ROOMS.index(room_of(path))
    ]
    assert not upward
    assert {room_of(path) for path in FILES} - {"__init__.py"} <= set(ROOMS)


def test_no_circle():
    # A package's own list of names leads everywhere below it.
    graph = {
        path: {module_of(parts) for parts in imports} - {PACKAGE / "__init__.py"}
        for path, imports in FILES.items()
        if path.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()
