"""Members of zip and tar archives: what the writers wrote, by an index that is kept; damage and traps are one line."""

import io
import zipfile

import numpy as np
import pytest

from score_flow.data.formats import archives, index, spans
from score_flow.errors import UserError
from tests.data.writers import noise, refusal, tar_of, zip_of

FILES = (
    {"BZh/first": b"x"}
    | {f"a/{i}.bin": bytes(noise(1, 50 + i, seed=i)) for i in range(4)}
    | {"b/empty": b"", "ä/zeros": bytes(5000)}
)


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar", "tar.gz", "tar.bz2", "tar.xz", "two zips", "two tars"])
def test_members_are_what_was_written(kind, tmp_path):
    names = list(FILES)
    parts = [names[:2], names[2:]] if kind.startswith("two") else [names]
    files = []
    for i, part in enumerate(parts):
        some = {name: FILES[name] for name in part}
        mode = f"w:{kind[4:]}" if kind.startswith("tar.") else "w"
        packed = zip_of(some, kind == "deflated") if kind in ("stored", "deflated", "two zips") else tar_of(some, mode)
        files.append(tmp_path / f"{i}.x")
        files[-1].write_bytes(packed)
    members = archives.open_files(files)
    assert list(members.names) == names
    assert {members.names[i]: members.read(i) for i in reversed(range(len(members)))} == FILES


def damaged():
    """case -> (bytes, words)."""
    zipped, tarred = zip_of(FILES), tar_of(FILES, "w")
    at = zipped.index(FILES["a/2.bin"])
    flipped = zipped[: at + 5] + bytes([zipped[at + 5] ^ 1]) + zipped[at + 6 :]
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(1 << 17))
    lying = bytearray(zip_of({"bomb.png": bytes(1 << 17)}, True))
    lying[lying.index(b"PK\1\2") + 24 :][:4] = b""
    directory = lying.index(b"PK\1\2")
    lying[directory + 24 : directory + 28] = (100).to_bytes(4, "little")
    return {
        "zip cut": (zipped[:-30], "no zip, and does not end as a tar does; cut off?"),
        "zip flipped": (flipped, "a/2.bin: does not fit its size and crc"),
        "zip bomb": (huge.getvalue(), "bomb.png unpacks to 131072 bytes"),
        "zip that lies": (bytes(lying), "bomb.png: does not fit its size"),
        "zip up": (zip_of({"a/../../x": b"1"}), "leads out of the archive"),
        "zip bzip2": (zip_of({"a": b"1"}, zipfile.ZIP_BZIP2), "packed by method 12"),
        "zip empty": (zip_of({}), "an archive of no files"),
        "tar cut in a member": (tarred[:700], "cut off"),
        "tar cut in a header": (tarred[: 1024 * 3 + 100], "cut off"),
        "tar cut between": (tarred[: 1024 * 4], "cut off"),
        "tar up": (tar_of({"../x": b"1"}, "w"), "leads out of the archive"),
        "gz cut": (tar_of(FILES)[:-40], "cannot be unpacked; cut off"),
        "gz flipped": (tar_of(FILES)[:-6] + bytes(6), "cannot be unpacked"),
        "gz bomb": (tar_of({"zeros": bytes(1 << 20)}), "unpacks to more than"),
        "text": (b"hello", "does not end as a tar does"),
        "empty": (b"", "no readable zip or tar"),
    }


@pytest.mark.parametrize("case", damaged())
def test_damage_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 1 << 16)
    monkeypatch.setattr(spans, "SMALL", 1 << 16)
    content, words = damaged()[case]
    file = tmp_path / "x.zip"
    file.write_bytes(content)

    def read_all():
        members = archives.open_files([file])
        return [members.read(i) for i in range(len(members))]

    message = refusal(read_all)
    assert words in message and "x.zip" in message


# ---- the index


def test_an_index_is_kept_and_is_of_these_very_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FEW", 3)
    scans = []
    scan = archives._scan_zip

    def _scan_zip(file):
        scans.append(file)
        return scan(file)

    monkeypatch.setattr(archives, "_scan_zip", _scan_zip)
    file = tmp_path / "x.zip"
    file.write_bytes(zip_of(FILES))
    for _ in range(3):
        members = archives.open_files([file])
        assert [members.read(i) for i in range(len(members))] == list(FILES.values())
    assert len(scans) == 1
    (kept,) = index.folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])  # damaged: scanned again
    assert list(archives.open_files([file]).names) == list(FILES) and len(scans) == 2
    file.write_bytes(zip_of({"c": b"1"} | FILES))  # another file
    assert archives.open_files([file]).names[0] == "c" and len(scans) == 3


def test_where_no_index_can_be_kept_the_scan_is_used(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(index, "FEW", 3)
    (tmp_path / "x.zip").write_bytes(zip_of(FILES))
    assert len(archives.open_files([tmp_path / "x.zip"])) == len(FILES)
    assert capsys.readouterr().err.count("the index is not kept") == 1


def test_few_members_are_scanned_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "x.zip").write_bytes(zip_of(FILES))
    archives.open_files([tmp_path / "x.zip"])
    assert not index.folder().exists()


def test_a_file_that_shrinks_later_is_one_line(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of(FILES))
    members = archives.open_files([tmp_path / "x.zip"])
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(UserError, match="^[^\n]*x.zip: ends within[^\n]*cut off"):
        members.read(0)


def test_names_of_any_kind_are_kept():
    for names in ([], ["a"], ["", "b"], ["ä/\n", "\udcff", "c"]):
        array = index.packed(names)
        assert array.dtype == np.uint8 and index.unpacked(array) == names
