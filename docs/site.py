"""What mkdocs needs beside mkdocs.yml: the pages that lie elsewhere, notebooks, the API, and mathematics as MathML.

A page keeps its place in the repository and its links, which lead to files there; here they become links of the site.
Nothing of mkdocs is imported before it runs, so that tests know the pages without it.
"""

import html
import os
import re
from pathlib import Path

from examples.run import SHOWN, cells
from score_flow import _FACE
from score_flow.config import registries

ROOT = Path(__file__).resolve().parent.parent
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PICTURES = Path("docs/pictures/examples")
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")

# API page -> (title, modules). Of a folder of plug-ins, all of them.
API = {
    "opening": ("Runs", ["evaluation.opened.opening", "evaluation.opened.run"]),
    "model": ("Models and denoisers", ["score_flow.model", "sampling.base"]),
    "process": ("Predictions, times, grids", [f"score_flow.process.{n}" for n in ("prediction", "times", "grid")]),
}
PLUG_INS = {
    "paths": ("Paths", "score_flow.paths.base", registries.PATHS),
    "networks": ("Networks", "score_flow.networks.blocks.layers", registries.NETWORKS),
    "losses": ("Losses", "score_flow.losses.base", registries.LOSSES),
    "data": ("Data sets", "score_flow.data.base", registries.SOURCES),
    "samplers": ("Samplers", "sampling.building", registries.SAMPLERS),
    "predictors": ("Predictors", "sampling.reverse_sde", registries.PREDICTORS),
    "correctors": ("Correctors", "", registries.CORRECTORS),
    "control": ("Control", "sampling.control.base", registries.CONTROLS),
    "jobs": ("Jobs of evaluation", "evaluation.jobs.base", registries.JOBS),
    "extractors": ("Extractors of features", "evaluation.metrics.extractors.base", registries.EXTRACTORS),
}


# ---- which pages there are


def pages() -> dict[str, Path]:
    """The pages that are files of the repository: address within the site's sources -> file."""
    files = [*(ROOT / name for name in AT_THE_ROOT), *sorted((ROOT / "docs").rglob("*.md"))]
    return {address(file): file for file in [*files, *sorted((ROOT / "examples").glob("*.ipynb"))]}


def address(file: Path) -> str:
    """Where a file of the repository lies in the site's sources: docs/ is their root, a notebook is a page."""
    path = file.relative_to(ROOT).as_posix().removeprefix("docs/")
    return path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path


def written() -> dict[str, str]:
    """The pages that are no files: address -> text."""
    return {f"api/{name}.md": text for name, text in {"index": _face(), **_modules()}.items()}


def _modules() -> dict[str, str]:
    """The API's pages: a heading, and a line for each module, in whose place mkdocstrings puts its docstrings."""
    listed = dict(API)
    for name, (title, base, registry) in PLUG_INS.items():
        entries = [f"{registry.package}.{entry}" for entry in registry.names()]
        listed[name] = title, [base, *entries] if base else entries
    texts = {name: [f"# {title}", *(f"::: {m}" for m in modules)] for name, (title, modules) in listed.items()}
    return {name: "\n\n".join(parts) for name, parts in texts.items()}


def _face() -> str:
    """The names of `import score_flow as sf`."""
    where = {module: page for page, text in _modules().items() for module in re.findall(r"^::: (.*)$", text, re.M)}
    where |= {registry.package: page for page, (_, _, registry) in PLUG_INS.items()}
    where |= {"sampling.kernels": "predictors", "score_flow.errors": ""}
    rows = []
    for name, module in _FACE.items():
        page = where[module.partition(":")[0]]
        link = f"[{page}]({page}.md)" if page else ""
        rows.append(f"| `sf.{name}` | {link} | `{module.replace(':', '.')}` |")
    about = "`import score_flow as sf` has these names, each loaded when it is asked for."
    about += " The [guide](../guide/python.md) says how they are used."
    return "\n".join([f"# The library\n\n{about}\n", "| name | page | where it lies |", "| --- | --- | --- |", *rows])


def of_notebook(file: Path) -> str:
    """A notebook as Markdown, with the pictures that a full run left in docs/pictures/examples."""
    parts, shown = [], 0
    for cell in cells(file):
        parts.append(cell.text if cell.markdown else f"```python\n{cell.text}\n```")
        if not cell.markdown and draws(cell.text):
            shown += 1
            picture = PICTURES / f"{file.stem}-{shown}.png"
            if (ROOT / picture).exists():
                parts.append(f"![Picture {shown}](../{picture.relative_to('docs').as_posix()})")
    head, *rest = parts
    return "\n\n".join([head, f"[This page as a notebook]({file.name}){{ download }}", *rest]) + "\n"


def draws(code: str) -> bool:
    """Whether a cell shows a picture: by pyplot at its end, or by a function `show` of the notebook."""
    return code.rstrip().splitlines()[-1] == SHOWN or bool(re.search(r"^show\(", code, re.MULTILINE))


# ---- links and mathematics


def relinked(markdown: str, file: Path, known: set[str]) -> str:
    """The text with its links to files of the repository made links of the site."""
    here = Path(address(file)).parent

    def link(found: re.Match) -> str:
        target = (file.parent / found[1]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT) or address(target) not in known:
            return found[0]
        return f"]({os.path.relpath(address(target), here)}{found[2] or ''})"

    return LINK.sub(link, markdown)


def with_mathml(page: str) -> str:
    """HTML whose formulas, as pymdownx.arithmatex leaves them, are MathML: no script is needed to read it."""
    from latex2mathml.converter import convert

    def formula(found: re.Match) -> str:
        display = "block" if found[1] == "div" else "inline"
        return f"<{found[1]} class='arithmatex'>{convert(html.unescape(found[2]), display=display)}</{found[1]}>"

    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, page, flags=re.DOTALL)


# ---- what mkdocs calls


def on_files(files, config):
    """Add the pages that lie outside docs/, those that are written here, and the files that pages link to."""
    from mkdocs.structure.files import File

    for place, file in pages().items():
        if place not in files.src_uris:
            content = {"content": of_notebook(file)} if file.suffix == ".ipynb" else {"abs_src_path": str(file)}
            files.append(File.generated(config, place, **content))
    for place, text in written().items():
        files.append(File.generated(config, place, content=text))
    for file in linked():
        place = file.relative_to(ROOT).as_posix()
        if place not in files.src_uris:
            files.append(File.generated(config, place, abs_src_path=str(file)))
    return files


def linked() -> set[Path]:
    """The files that pages link to and that are no pages, such as those of launch/; notebooks, to take along."""
    files = [*pages().values()]
    notebooks = {file for file in files if file.suffix == ".ipynb"}
    targets = {(file.parent / found[1]).resolve() for file in files for found in LINK.finditer(file.read_text())}
    inside = {t for t in targets if t.is_file() and t.is_relative_to(ROOT) and not t.is_relative_to(ROOT / "docs")}
    return (inside - {*files}) | notebooks


def on_page_markdown(markdown, page, config, files):
    """Links of a file of the repository lead to pages."""
    file = pages().get(page.file.src_uri)
    return relinked(markdown, file, {*files.src_uris}) if file else markdown


def on_page_content(html, page, config, files):
    """Formulas become MathML."""
    return with_mathml(html)
