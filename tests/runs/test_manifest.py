"""Manifests: whatever happens to a file of a checkpoint, or to what it says of itself, is found."""

import json
import shutil

import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.runs import manifest
from score_flow.runs.checkpoint import Checkpoints
from tests.states import DAMAGE, files

RNG = np.random.default_rng(0)


def test_no_flipped_bit_is_silent(copied):
    """200 random bits, each byte of the checkpoint equally likely."""
    checkpoints, paths = Checkpoints(copied), files(copied, 10)
    sizes = np.array([path.stat().st_size for path in paths])
    silent = []
    for path in [paths[i] for i in RNG.choice(len(paths), 200, p=sizes / sizes.sum())]:
        whole = path.read_bytes()
        data = bytearray(whole)
        place, bit = int(RNG.integers(len(data))), int(RNG.integers(8))
        data[place] ^= 1 << bit
        path.write_bytes(data)
        if checkpoints.damage(10) is None:
            silent.append((path.name, place, bit))
        path.write_bytes(whole)
    assert not silent
    assert checkpoints.damage(10) is None
    checkpoints.close()


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_to_any_file_is_found(copied, kind):
    checkpoints = Checkpoints(copied)
    # Without its manifest a checkpoint does not exist.
    for path in files(copied, 10)[: -1 if kind == "missing" else None]:
        whole = path.read_bytes()
        DAMAGE[kind](path)
        problem = checkpoints.damage(10)
        assert problem and path.name in problem, path
        path.write_bytes(whole)
    (copied / "10" / "more").write_text("")
    assert "more" in checkpoints.damage(10)
    checkpoints.close()


def resign(directory, step, change=lambda hashes: hashes):
    """Write the manifest that fits what a step holds now."""
    path = directory / f"{step}.manifest.json"
    path.write_text(json.dumps(change(manifest.hashes(directory / str(step)))))


def without(part):
    return lambda hashes: {name: value for name, value in hashes.items() if part not in name}


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "3", '{"a": 1}', "[" * 100_000, "meta/metadata", "_CHECKPOINT_METADATA", "ema/", "_MET"]
)
def test_an_empty_or_partial_manifest_is_damage(copied, text):
    checkpoints = Checkpoints(copied)
    if text[-1:].isalpha() or text.endswith("/"):
        for path in [path for path in (copied / "10").rglob("*") if text in str(path.relative_to(copied / "10"))]:
            path.unlink() if path.is_file() else None
        resign(copied, 10, without(text))
    else:
        (copied / "10.manifest.json").write_text(text)
    assert checkpoints.damage(10) and checkpoints.newest_good() == 5
    checkpoints.close()


def test_a_step_that_is_not_the_one_of_its_name_is_damage(copied):
    checkpoints = Checkpoints(copied)
    for path in (copied / "10", copied / "10.manifest.json"):  # moved to another step
        path.rename(copied / path.name.replace("10", "15"))
    assert checkpoints.damage(15) == "it claims step 15, and holds step 10"
    shutil.copytree(copied / "15", copied / "20")  # ... whose meta was changed with it
    (copied / "20" / "meta" / "metadata").write_text('{"step": 20}')
    resign(copied, 20)
    assert checkpoints.damage(20) == "it claims step 20, and holds step 10"
    (copied / "20" / "meta" / "metadata").write_text("{}")  # ... or says nothing
    resign(copied, 20)
    assert checkpoints.damage(20) == "it claims step 20, and holds step 10"
    for text in ("[]", "no JSON", '{"step": null}'):
        (copied / "20" / "meta" / "metadata").write_text(text)
        resign(copied, 20)
        assert checkpoints.damage(20), text
    checkpoints.close()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 100])
def test_each_file_is_read_by_one_process_and_all_read_about_as_many_bytes(n):
    sizes = {f"f{i}": int(size) for i, size in enumerate(RNG.integers(0, 1000, 60))} | {"empty": 0, "large": 5000}
    shares = manifest.divided(sizes, n)
    assert len(shares) == n and sorted(name for share in shares for name in share) == sorted(sizes)
    read = [sum(sizes[name] for name in share) for share in shares]
    assert max(read) <= max(5000, sum(sizes.values()) / n + 1000)
    again = manifest.divided(dict(reversed(sizes.items())), n)  # in whatever order a disk lists them
    assert again == shares


def test_a_digest_names_what_a_step_holds(written, copied):
    directory, _ = written
    one, other = Checkpoints(directory), Checkpoints(copied)
    assert one.digest(5) == other.digest(5) != one.digest(10)
    assert len(one.digest(5)) == 16
    (copied / "5" / "meta" / "metadata").write_text('{"step": 5}')
    resign(copied, 5)
    assert one.digest(5) != other.digest(5)
    (copied / "5.manifest.json").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        other.digest(5)
