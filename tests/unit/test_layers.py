"""Imports point down: a module imports from lower layers, or from its own package, never from beside or above."""

from __future__ import annotations

import ast
from pathlib import Path

import batchchat

ROOT = Path(batchchat.__file__).parent
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"clock", "errors", "format", "prices", "reasoning", "records"}),
    frozenset({"events", "providers", "identity", "images", "structured"}),
    frozenset({"money"}),
    frozenset({"budget", "job", "views", "limits", "retry", "transport", "sources", "template", "demo"}),
    frozenset({"cache", "store", "client", "review"}),
    frozenset({"engines", "intake"}),
    frozenset({"runner", "choosing"}),
    frozenset({"plan", "inspection", "history"}),
    frozenset({"report"}),
    frozenset({"evaluation"}),
    frozenset({"export"}),
    frozenset({"starter", "guide"}),
    frozenset({"cli"}),
    frozenset({"api", "__main__"}),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT)
        if inside.name == "__init__.py" and inside.parent == Path():
            continue
        found.append((inside.parts[0].removesuffix(".py"), path))
    return found


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("batchchat.")}


def test_every_module_has_a_layer() -> None:
    assert {room for room, _ in _modules()} <= set(LEVEL)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} (layer {LEVEL[room]}) imports batchchat.{target} (layer {LEVEL[target]})"
        for room, path in _modules()
        for target in _imports(path)
        if target != room and LEVEL[target] >= LEVEL[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rooms_of_an_evaluation_import_downwards() -> None:
    rooms = ["statistics", "scorers", "suite", "results"]
    wrong = []
    for level, room in enumerate(rooms):
        for path in (ROOT / "evaluation" / room).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            above = [name for name in rooms[level + 1 :] if f"batchchat.evaluation.{name}" in text]
            at_top = [name.stem for name in (ROOT / "evaluation").glob("[a-z]*.py")]
            above += [name for name in at_top if f"from batchchat.evaluation.{name} " in text]
            wrong += [f"{path.relative_to(ROOT)} imports batchchat.evaluation.{name}" for name in above]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_prints() -> None:
    for room, path in _modules():
        if room == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "input"}, f"{path} line {node.lineno}"


def test_only_the_store_knows_where_the_files_of_an_output_lie() -> None:
    """Nobody else names the state folder, or takes a carrier, a journal or a lock into its hands."""
    inside = ("batchchat.store.location.local", "batchchat.store.location.lock", "batchchat.store.journal")
    wrong = []
    for room, path in _modules():
        # A source leaves out the state folder of an output that is its input, and lies below the store.
        if room in {"store", "sources"}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        docstrings = {id(text) for text in texts if isinstance(text, ast.Constant)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in inside:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}")
            elif isinstance(node, ast.Constant) and id(node) not in docstrings and "_batchchat" in str(node.value):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} names the state folder")
    assert not wrong, "\n".join(wrong)


def test_the_carriers_of_a_location_know_nothing_of_records() -> None:
    for path in (ROOT / "store" / "location").glob("*.py"):
        above = {name for name in _imports_of_store(path) if not name.startswith("location")}
        assert not above, f"{path.relative_to(ROOT)} imports batchchat.store.{above}"
        assert "pyarrow" not in path.read_text(encoding="utf-8")


def _imports_of_store(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.removeprefix("batchchat.store.") for name in modules if name.startswith("batchchat.store.")}
