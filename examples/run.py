"""Run a notebook without Jupyter, and keep its pictures: python -m examples.run examples/score_from_nothing.ipynb

The first code cell is NAME = VALUE lines: --set NAME=VALUE gives them other values. With --pictures=FOLDER every figure
that a cell shows is written there, NOTEBOOK-1.png and so on; the pages of the documentation are made of these.
"""

import argparse
import ast
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SHOWN = "plt.show()"  # the last line of a cell that draws one picture


class Cell(NamedTuple):
    """A cell of a notebook."""

    markdown: bool
    text: str


def cells(notebook: Path) -> list[Cell]:
    """The cells of an .ipynb, in order."""
    found = json.loads(notebook.read_text(encoding="utf8"))["cells"]
    return [Cell(cell["cell_type"] == "markdown", "".join(cell["source"])) for cell in found]


def with_values(text: str, values: dict[str, Any]) -> str:
    """The cell of parameters with other values; raises ValueError for a name that it does not set."""
    tree = ast.parse(text)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if unknown := values.keys() - names:
        raise ValueError(f"the notebook has no parameter {', '.join(sorted(unknown))}; it has: {', '.join(names)}.")
    return text + "".join(f"\n{name} = {value!r}" for name, value in values.items())


def run(notebook: Path, values: dict[str, Any], keep: Callable[[int, Any], None] = lambda n, figure: None) -> dict:
    """Run the code of a notebook in one session, and return its names; keep(n, figure) sees every picture, from 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    session, shown = {"__name__": "__main__"}, 0
    code = [cell.text for cell in cells(notebook) if not cell.markdown]
    for n, text in enumerate([with_values(code[0], values), *code[1:]]):
        exec(compile(text, f"{notebook.name}, code cell {n + 1}", "exec"), session)
        for number in pyplot.get_fignums():
            shown += 1
            keep(shown, pyplot.figure(number))
        pyplot.close("all")
    return session


def saved_in(folder: Path, stem: str) -> Callable[[int, Any], None]:
    """What keeps pictures as small files of 64 colours."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)

    def keep(n: int, figure: Any) -> None:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=80, bbox_inches="tight")
        Image.open(drawn).convert("RGB").quantize(64).save(folder / f"{stem}-{n}.png", optimize=True)

    return keep


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the first code cell")
    parser.add_argument("--pictures", type=Path, help="folder of the pictures")
    given = parser.parse_args()
    values = {name: ast.literal_eval(value) for name, _, value in (item.partition("=") for item in given.set)}
    run(given.notebook, values, *([saved_in(given.pictures, given.notebook.stem)] if given.pictures else []))
