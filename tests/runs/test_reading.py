"""Files of others are read as what they should be, or refused in one line that names them."""

import hashlib
import io
import zipfile

import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.runs import files

X, Y = np.arange(6.0).reshape(2, 3), np.arange(4, dtype=np.uint8)


def refusal(read, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_arrays_come_back_all_or_those_asked_for(tmp_path):
    files.write_arrays(file := tmp_path / "a.npz", x=X, y=Y)
    for names, wanted in ((None, {"x", "y"}), (("y", "z"), {"y"}), ((), set())):
        found = files.arrays_of(file, names)
        assert found.keys() == wanted
        assert all((found[name] == {"x": X, "y": Y}[name]).all() for name in wanted)


def test_the_limit_is_of_all_arrays_that_are_read(tmp_path):
    np.savez(file := tmp_path / "a.npz", x=X, y=X)
    one = X.nbytes + 128  # an array and its header
    assert files.arrays_of(file, ["x"], most=one).keys() == {"x"}
    assert f"unpack to {2 * one} bytes; allowed: at most {one}" in refusal(files.arrays_of, file, most=one)
    assert f"allowed: at most {one - 1}" in refusal(files.arrays_of, file, ["x"], most=one - 1)


def test_an_array_is_read_from_either_kind_of_file(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "only.npz", other=X)
    np.savez(tmp_path / "two.npz", x=X, y=Y)
    (tmp_path / "two.dat").write_bytes((tmp_path / "two.npz").read_bytes())
    for name in ("a.npy", "only.npz", "two.npz", "two.dat"):
        np.testing.assert_array_equal(files.array_of(tmp_path / name, "x"), X)
    assert "holds x, y; allowed: z" in refusal(files.array_of, tmp_path / "two.npz", "z")
    assert "holds 176 bytes; allowed: 100" in refusal(files.array_of, tmp_path / "a.npy", "x", most=100)


class Canary:
    """What a pickle would make, were it ever read."""

    made = False

    def __reduce__(self):
        return setattr, (Canary, "made", True)


def test_nothing_is_unpickled(tmp_path):
    array = np.array([Canary()], object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=array)
    assert "not a readable .npy of a plain array" in refusal(files.array_of, tmp_path / "a.npy", "x")
    for read in (files.arrays_of, lambda file: files.array_of(file, "x")):
        assert "not a readable .npz of plain arrays" in refusal(read, tmp_path / "a.npz")
    assert not Canary.made


def test_two_arrays_of_one_name_are_refused(tmp_path):
    stream = io.BytesIO()
    np.save(stream, X)
    with zipfile.ZipFile(file := tmp_path / "a.npz", "w") as archive:
        for name in ("x", "x.npy"):
            archive.writestr(name, stream.getvalue())
    assert "two arrays of one name; got x, x" in refusal(files.arrays_of, file)


def test_paths_that_are_not_there_name_the_key(tmp_path):
    assert files.existing_path(str(tmp_path), "config.a") == tmp_path
    assert refusal(files.existing_path, "", "config.a") == "config.a: got nothing; give a file or a folder"
    gone = str(tmp_path / "gone")
    assert refusal(files.existing_path, gone, "config.a") == f"config.a: no such file or folder: {gone}"


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
