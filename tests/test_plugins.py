"""CONTRIBUTING.md: one of each kind, written from its text alone, trains, samples and evaluates and passes the tests.

The examples of the text are the files: each is written into a copy of the project, where nothing else changes.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from tests.launch import ROOT, environment


class Block(NamedTuple):
    """An example: the file that it is, or the file and table of which it is a row; the flags that name it."""

    file: str
    table: str
    row: str  # "name": value
    flags: tuple[str, ...]
    code: str

    @property
    def name(self) -> str:
        return ast.literal_eval(self.row.partition(":")[0]) if self.table else Path(self.file).stem


def blocks() -> dict[str, Block]:
    """name -> example, in the order of the text."""
    found = []
    for text in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL):
        place, flags, code = text.split("\n", 2)
        match = re.fullmatch(r"# (\S+\.py)(?:, in (\w+): (.+))?", place)
        assert match and flags.startswith("# --"), f"an example begins with its place and its flags, got {place!r}"
        found.append(Block(match[1], match[2] or "", match[3] or "", tuple(flags[2:].split()), code))
    return {block.name: block for block in found}


BLOCKS = blocks()


def inserted(text: str, block: Block) -> str:
    """The file of a table with one more row, and what the row needs above the table."""
    lines = text.splitlines(keepends=True)
    table = next(
        node for node in ast.parse(text).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and block.table in [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    )  # fmt: skip
    line, column = table.value.lineno - 1, table.value.col_offset + 1
    lines[line] = f"{lines[line][:column]}{block.row}, {lines[line][column:]}"
    above = table.lineno - 1
    return "".join([*lines[:above], block.code + "\n\n" if block.code else "", *lines[above:]])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with one more of each; nothing that was there is another."""
    copy = tmp_path_factory.mktemp("contributing") / "project"
    ignore = shutil.ignore_patterns("__pycache__", "golden")
    for folder in ("score_flow", "sampling", "evaluation", "configs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    (copy / "tests/golden").symlink_to(ROOT / "tests/golden")
    for name in ("main.py", "pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, copy)
    before = {p: p.read_text() for p in copy.rglob("*.py")}
    for block in BLOCKS.values():
        file = copy / block.file
        assert file.exists() == bool(block.table), block.file
        file.write_text(inserted(file.read_text(), block) if block.table else block.code)
    yield copy
    tables = {copy / block.file for block in BLOCKS.values() if block.table}
    assert {p for p in before if p.read_text() != before[p]} == tables
    assert {p for p in copy.rglob("*.py") if p not in before} == {copy / b.file for b in BLOCKS.values() if not b.table}


def run(project: Path, *flags: str, expected: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=project, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expected, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stderr


def named(*names: str) -> list[str]:
    """The flags of some of the examples."""
    return [flag for name in names for flag in BLOCKS[name].flags]


def result(project: Path, folder: str, job: str) -> dict:
    return json.loads((project / folder / "results.json").read_text())[job]
