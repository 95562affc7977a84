"""Compiled programs are kept where nobody else can put one, whole or not at all, and never in the way of a run."""

import os
import subprocess
import sys

import jax
import pytest

from score_flow.runs import programs
from score_flow.runs.programs import Programs, private
from tests.launch import ROOT, environment

KEPT = """
import jax, jax.numpy as jnp
from score_flow.runs import programs
print(programs.keep())
print(jax.jit(lambda x: jnp.sort(jnp.sin(x) @ x))(jnp.ones((8, 8)))[0, 0])
"""


def process(cache) -> subprocess.CompletedProcess:
    """A process that compiles one program; jax says whether it finds it kept."""
    own = environment(XDG_CACHE_HOME=str(cache), JAX_LOG_COMPILES="1", JAX_ENABLE_COMPILATION_CACHE="true")
    own = {name: value for name, value in own.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    own |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.run([sys.executable, "-c", KEPT], cwd=ROOT, env=own, capture_output=True, text=True, check=True)


@pytest.fixture
def asked():
    """jax as it starts where no variable is set; in the end as it was."""
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (True, None), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def test_what_is_compiled_is_loaded_by_the_next_process(tmp_path):
    first, second = process(tmp_path), process(tmp_path)
    [place] = (tmp_path / "score_flow" / "programs").iterdir()
    assert first.stdout.splitlines()[0] == f"compiled programs: {place}"
    assert place.stat().st_mode & 0o777 == 0o700
    entries = [entry for entry in place.iterdir() if entry.is_file()]
    assert entries and all(entry.stat().st_mode & 0o077 == 0 for entry in entries)
    hit = "Persistent compilation cache hit"
    assert hit not in first.stderr and hit in second.stderr and second.stdout == first.stdout


def test_an_entry_is_whole_or_not_there(tmp_path, monkeypatch):
    kept = Programs(tmp_path)
    kept.put("a", b"program")
    assert kept.get("a") == b"program" and kept.get("b") is None
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    assert kept.get("a") is None and not (tmp_path / "a").exists()

    def refuse(*paths):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        kept.put("a", b"program")
    assert not list(tmp_path.iterdir())


def test_the_oldest_go(tmp_path, monkeypatch):
    """What was read last is the newest."""
    monkeypatch.setattr(programs, "MOST", 3 * (10 + programs.DIGEST))
    kept = Programs(tmp_path)
    for i, key in enumerate("abc"):
        kept.put(key, bytes(10))
        os.utime(tmp_path / key, (i, i))
    kept.get("a")
    kept.put("d", bytes(10))
    assert {file.name for file in tmp_path.iterdir()} == {"a", "c", "d"}


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match="other users may write there"):
        private(shared / "score_flow" / "programs")
    shared.chmod(0o1777)  # as /tmp: each changes only his own
    (shared / "own").mkdir(mode=0o700)
    found = private(shared / "own" / "programs")
    found.chmod(0o777)
    assert private(found) == found and found.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", ["a file", "none"])
def test_where_nothing_can_be_kept_a_run_goes_on(tmp_path, monkeypatch, asked, home):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if home == "a file" else "")
    if home == "none":
        monkeypatch.setattr(programs.Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert programs.keep().startswith("compiled programs are not kept: ")
    assert jax.config.jax_compilation_cache_dir is None


def test_jax_own_variables_have_the_last_word(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    assert programs.keep() == "compiled programs: /elsewhere"
    jax.config.update("jax_enable_compilation_cache", False)
    assert programs.keep() is None and not list(tmp_path.iterdir())
