"""Imports point down: a module imports from lower layers, or from its own package, never from beside or above."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import batchchat

ROOT = Path(batchchat.__file__).parent
REPO = Path(__file__).parents[2]
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"dataclass", "lazy_arrow"}),
    frozenset({"addresses", "clock", "errors", "format", "prices", "reasoning", "records"}),
    frozenset({"credentials", "events", "providers", "identity", "images", "objects", "structured"}),
    frozenset({"attachments", "cascade", "money", "transport"}),
    frozenset({"budget", "job", "masks", "views", "limits", "retry", "sources", "template", "demo"}),
    frozenset({"cache", "store", "client", "acceptance", "examples", "sharing"}),
    frozenset({"endpoints"}),
    frozenset({"engines", "intake"}),
    frozenset({"runner", "choosing"}),
    frozenset({"planning", "inspection", "history", "joining", "controlling", "metrics", "resharding"}),
    frozenset({"labelling", "workers"}),
    frozenset({"following", "report"}),
    frozenset({"evaluation"}),
    frozenset({"export"}),
    frozenset({"starter", "guide"}),
    frozenset({"cli"}),
    frozenset({"api", "__main__"}),
    frozenset({"suite_api"}),
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


@cache
def _tree(path: Path) -> ast.Module:
    """Parse a file once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Walk a file once for all tests."""
    return tuple(ast.walk(tree))


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in _nodes(_tree(path)):
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
        for node in _nodes(_tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "input"}, f"{path} line {node.lineno}"


def test_one_module_alone_imports_ray() -> None:
    found = set()
    for name, tree in _trees():
        for node in _nodes(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(one.partition(".")[0] == "ray" for one in names):
                found.add(name)
    assert found == {"workers/ray_cluster.py"}


_CARRIERS = {f"batchchat.store.location.{name}" for name in ("choice", "folder", "folder_files", "lock", "scratch")}
_OF_FILES = frozenset({"os", "shutil", "glob", "tempfile", "fcntl", "mmap"})
"""Modules by which files are opened, moved or listed."""
_READS = {
    "exists",
    "glob",
    "is_dir",
    "is_file",
    "iterdir",
    "lstat",
    "read_bytes",
    "read_text",
    "readlink",
    "rglob",
    "stat",
}
_WRITES = {"chmod", "mkdir", "rename", "rmdir", "touch", "unlink", "walk", "write_bytes", "write_text"}
_OF_PATHS = _READS | _WRITES
"""Methods of a path that ask the file system."""


def _trees(*, inside: str = "") -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / inside).rglob("*.py")):
        yield str(path.relative_to(ROOT)), _tree(path)


def _touches_files(node: ast.AST) -> str | None:
    """Say how a node opens, moves or lists a file; None if it does not."""
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name.partition(".")[0] in _OF_FILES), None)
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in _OF_FILES:
        return node.module
    if isinstance(node, ast.Attribute) and node.attr in _OF_PATHS:
        return node.attr
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        first = node.args[0] if node.args else None
        # A port opens by a name or a number; a path is opened with a mode, or without anything.
        by_mode = first is None or (isinstance(first, ast.Constant) and isinstance(first.value, str))
        if name == "open" and (isinstance(node.func, ast.Name) or by_mode):
            return "open"
        if name == "replace" and isinstance(node.func, ast.Attribute) and len(node.args) == 1 and not node.keywords:
            return "replace"
    return None


def test_nothing_of_the_store_but_its_location_opens_moves_or_lists_a_file() -> None:
    wrong = [
        f"{name}:{getattr(node, 'lineno', 0)} uses {found}"
        for name, tree in _trees(inside="store")
        if not name.startswith("store/location/")
        for node in _nodes(tree)
        if (found := _touches_files(node)) is not None
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_store_knows_where_the_files_of_an_output_lie() -> None:
    """Nobody else names the state folder, takes a carrier or a journal into its hands, or joins a name to an output."""
    # A source leaves out the state folder of an output that is its input, and lies below the store.
    allowed = {"sources/naming.py"}
    inside = {*_CARRIERS, "batchchat.store.journal", "batchchat.store.location.port"}
    wrong = []
    for name, tree in _trees():
        if name.startswith("store/") or name in allowed:
            continue
        texts = [node.value for node in _nodes(tree) if isinstance(node, ast.Expr)]
        docstrings = {id(text) for text in texts if isinstance(text, ast.Constant)}
        for node in _nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.module in inside:
                wrong.append(f"{name}:{node.lineno} imports {node.module}")
            elif isinstance(node, ast.Constant) and id(node) not in docstrings and "_batchchat" in str(node.value):
                wrong.append(f"{name}:{node.lineno} names the state folder")
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                left = ast.unparse(node.left)
                if left.endswith(("store.directory", "output.directory", "output.path", "output.path)")):
                    wrong.append(f"{name}:{node.lineno} joins a name to {left}")
    assert not wrong, "\n".join(wrong)


def test_the_check_of_files_sees_every_way_to_touch_one() -> None:
    for text in (
        *("import os", "import shutil", "from glob import glob", 'open("x")', 'path.open("rb")', "path.open()"),
        *("path.unlink()", "path.rename(x)", "path.replace(x)", "path.iterdir()", 'path.rglob("*")', "path.stat()"),
    ):
        assert any(_touches_files(node) for node in ast.walk(ast.parse(text))), text
    for text in ("files.open(name)", "journals.open(2 + n)", "replace(known, runs=1)", "text.replace('a', 'b')"):
        assert not any(_touches_files(node) for node in ast.walk(ast.parse(text))), text


def test_the_carriers_of_a_location_know_nothing_of_records() -> None:
    for path in (ROOT / "store" / "location").glob("*.py"):
        above = {name for name in _imports_of_store(path) if not name.startswith("location")}
        assert not above, f"{path.relative_to(ROOT)} imports batchchat.store.{above}"
        assert "pyarrow" not in path.read_text(encoding="utf-8")


def _imports_of_store(path: Path) -> set[str]:
    tree = _tree(path)
    modules = [node.module or "" for node in _nodes(tree) if isinstance(node, ast.ImportFrom)]
    return {name.removeprefix("batchchat.store.") for name in modules if name.startswith("batchchat.store.")}


def test_a_run_imports_nothing_that_it_does_not_use() -> None:
    """A run whose provider is on the network, and that writes JSON, needs no page, no server and no styled text."""
    script = (
        "import sys; import batchchat.cli as cli; cli._start_fast();"
        "import batchchat.cli.running, batchchat.runner.run, batchchat.transport, batchchat.job.model as model;"
        "heavy = 'rich pygments starlette uvicorn jsonschema duckdb obstore openpyxl sqlite3 multiprocessing'.split();"
        "heavy.append('pandas');"
        "print([name for name in heavy if sys.modules.get(name) is not None],"
        "[name for name, section in model.FIELDS.items() if section.__pydantic_complete__])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "[] []\n"


def test_a_user_s_own_module_may_import_what_a_run_is_spared(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import pandas, pyarrow as pa\n"
        "frame = pa.Table.from_pylist([{'a': 1}]).to_pandas()\n"
        "print(frame['a'].tolist(), pa.array(frame['a']).to_pylist())\n"
    )
    script = "import batchchat.cli as cli; cli._start_fast(); import batchchat.store.output, own"
    run = [sys.executable, "-c", script]
    answer = subprocess.run(
        run, capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert answer.stdout == "[1] [1]\n"


@pytest.mark.parametrize("page", [".github/CONTRIBUTING.md", "tests/README.md"])
def test_every_file_that_a_page_for_contributors_names_is_there(page: str) -> None:
    text = (REPO / page).read_text(encoding="utf-8")
    places = (REPO, ROOT, REPO / "tests", ROOT / "evaluation" / "scorers", ROOT / "store")
    named = set(re.findall(r"`([\w./*]+\.(?:py|md)|[\w/]+/)`", text))
    assert len(named) > 12
    missing = [name for name in sorted(named) if not any(list(place.glob(name.rstrip("/"))) for place in places)]
    assert not missing


def test_the_map_of_contributors_names_every_room() -> None:
    text = (REPO / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    rooms = set(LEVEL) - {"__main__"}
    assert rooms - named == set()


def test_a_public_class_has_its_name_alone() -> None:
    homes: dict[str, list[str]] = {}
    for name, tree in _trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(f"{name}:{node.lineno}")
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
