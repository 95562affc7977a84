"""The site of the docs: every page has its place in nav and the other way round; its links, pictures and formulas."""

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.launch import ROOT, environment

spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / "docs/site.py")
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)
NAV = re.findall(r"^ +- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2], re.MULTILINE)
NAV = [*re.findall(r"^  - (README\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE), *NAV]


def test_nav_names_every_page_once():
    assert sorted(set(NAV)) == sorted({*site.pages(), *site.written()}) and len(NAV) > 30


def test_modules_of_the_api_are_there():
    named = re.findall(r"^::: (.*)$", "\n".join(site.written().values()), re.MULTILINE)
    assert len(named) > 70
    for module in named:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), module


def test_every_name_of_the_library_is_listed():
    from score_flow import _FACE

    table = site.written()["api/index.md"]
    assert all(f"| `sf.{name}` |" in table for name in _FACE)
    assert {f"api/{page}" for page in re.findall(r"\]\((\w+\.md)\)", table)} <= site.written().keys()


@pytest.mark.parametrize("file", [f for f in site.pages().values() if f.suffix == ".ipynb"], ids=lambda f: f.stem)
def test_links_and_pictures_of_notebooks(file):
    """Links of the notebook lead to files, those of its page to pages; formulas are closed."""
    text = site.of_notebook(file)
    for link in re.findall(r"\]\(([^)\s#:]+\.(?:md|ipynb|png))", text):
        assert (file.parent / link).exists() or (ROOT / "docs/examples" / link).resolve().exists(), link
    assert text.count("$$") % 2 == 0 and re.match(r"# \w", text)
    again = site.relinked(text, file, {*site.pages()} | {"CONTRIBUTING.md"})
    leading = re.findall(r"\]\(([\w./]+\.ipynb)\)", again.partition("{ download }")[2])
    assert not leading and f"[This page as a notebook]({file.name})" in text


def test_links_become_those_of_the_site():
    page = ROOT / "docs/guide/combine.md"
    assert site.relinked("[a](../../CONTRIBUTING.md#a-path)", page, {*site.pages()}) == "[a](../CONTRIBUTING.md#a-path)"
    assert site.relinked("[a](data.md) [b](https://x.org)", page, {*site.pages()}) == "[a](data.md) [b](https://x.org)"
    assert site.relinked("[a](docs/guide/data.md)", ROOT / "README.md", {*site.pages()}) == "[a](guide/data.md)"
    assert site.relinked("[a](nowhere.md)", page, {*site.pages()}) == "[a](nowhere.md)"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """Without a warning, and what it shows needs no other machine: no script, style or font of one."""
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    pages = [file.read_text() for file in tmp_path.rglob("*.html")]
    assert len(pages) > 30
    fetched = [found for text in pages for found in re.findall(r"<(?:script|link|img)[^>]+=\"?https?:[^>]*", text)]
    assert not fetched
    assert "<math" in (tmp_path / "examples/score_from_nothing.html").read_text()
    assert "bits_per_dim" in (tmp_path / "api/opening.html").read_text()
