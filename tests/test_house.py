"""The size of the house: few files beside the rooms, short files and functions, nothing written twice."""

import ast
import collections
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    p
    for folder in ("score_flow", "sampling", "evaluation", "configs", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
]
FILES += [ROOT / "main.py"]
TESTS = list((ROOT / "tests").rglob("*.py"))
BESIDE = 12  # files at most beside the rooms of a package
OF_A_FILE, OF_A_FUNCTION = 350, 50  # lines at most
TWICE = 12  # equal lines in a row that may not stand twice


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", ["score_flow", "evaluation"])
def test_few_files_stand_beside_the_rooms(package):
    files = sorted(path.name for path in (ROOT / package).glob("*.py"))
    assert len(files) <= BESIDE, files


def test_files_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in FILES + TESTS}
    assert not {name(path): n for path, n in lines.items() if n > OF_A_FILE}


def test_modules_of_tests_have_names_of_their_own():
    """Of two of one name pytest collects one."""
    counts = collections.Counter(path.name for path in TESTS if path.name.startswith("test_"))
    assert not {module: n for module, n in counts.items() if n > 1}


def functions(path: Path) -> dict[str, int]:
    """file:line name -> lines of every function, the nested ones too, without decorators."""
    return {
        f"{name(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_are_one_screen():
    long = {where: n for path in FILES + TESTS for where, n in functions(path).items() if n > OF_A_FUNCTION}
    assert not long


def code(path: Path) -> list[tuple[int, str, bool]]:
    """(number, text, whether it is part of an import) of the lines of a file that are neither blank nor comments."""
    text = path.read_text()
    imports = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    lines = [(number, line.strip(), number in imports) for number, line in enumerate(text.splitlines(), 1)]
    return [line for line in lines if line[1] and not line[1].startswith("#")]


def copies(files: list[Path], n: int) -> list[str]:
    """Where n equal lines stand that stand elsewhere too; imports do not count."""
    places = collections.defaultdict(list)
    for path in files:
        lines = code(path)
        for i in range(len(lines) - n + 1):
            window = lines[i : i + n]
            if not all(imported for _, _, imported in window):
                places[tuple(text for _, text, _ in window)].append(f"{name(path)}:{window[0][0]}")
    return [" = ".join(found) for found in places.values() if len(found) > 1]


def test_nothing_stands_twice():
    assert not copies([path for path in FILES if not name(path).startswith("configs/")], TWICE)


def test_a_copy_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    body = "\n".join(f"x{i} = {i}  # of the body" for i in range(TWICE))
    for stem, first in (("one", "import os"), ("other", "y = 1\n\n")):
        (tmp_path / f"{stem}.py").write_text(f"{first}\n{body}\n")
    assert copies(sorted(tmp_path.glob("*.py")), TWICE) == ["one.py:2 = other.py:4"]
