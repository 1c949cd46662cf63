from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from probekit.data.folders import Tree, find_classes, list_folder, list_zip
from probekit.errors import DataError


def tree(*files: str, folders: tuple[str, ...] = ()) -> Tree:
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    return Tree(Path("data"), dict.fromkeys(files, ""), frozenset(parents | set(folders)))


def facts(found) -> list[tuple[str, str, str | None]]:
    return list(zip(found.ids, found.classes, found.roles, strict=True))


def test_class_folders():
    found = find_classes(tree("b/2.png", "a/1.JPG", "a/deep/er/3.webp"))
    assert facts(found) == [
        ("a/1.JPG", "a", None),
        ("a/deep/er/3.webp", "a", None),
        ("b/2.png", "b", None),
    ]


def test_split_folders():
    found = find_classes(tree("train/a/1.png", "valid/a/2.png", "Test/b/3.png"))
    assert facts(found) == [
        ("Test/b/3.png", "b", "test"),
        ("train/a/1.png", "a", "train"),
        ("valid/a/2.png", "a", "val"),
    ]


def test_shared_leading_folders_are_left_out():
    found = find_classes(tree("x/y/a/1.png", "x/y/b/2.png"))
    assert found.ids == ("a/1.png", "b/2.png")
    assert found.names == ("x/y/a/1.png", "x/y/b/2.png")
    assert find_classes(tree("x/train/a/1.png", "x/train/b/1.png")).roles == ("train", "train")


def test_class_called_like_a_split_stands_beside_other_classes():
    assert find_classes(tree("bus/1.png", "train/2.png")).classes == ("bus", "train")


def test_other_files_are_counted_in_the_log(caplog):
    with caplog.at_level(logging.INFO):
        find_classes(tree("a/1.png", "b/1.png", "readme.txt", "b/notes.md"))
    assert "2 files are not images, such as b/notes.md" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (tree(), "an empty folder"),
        (tree("a/x.txt", "b/y.txt"), "2 other files"),
        (tree("a/1.png", "b/1.png", "0.png"), "1 outside, such as '0.png'"),
        (tree("train/a/1.png", "train/0.png", "test/a/1.png"), "1 outside, such as 'train/0.png'"),
        (tree("a/1.png", folders=("b",)), "1 empty: 'b'"),
        (tree("train/a/1.png", "test/a/2.png", folders=("train/b",)), "1 empty: 'train/b'"),
        (tree("train/a/1.png", "other/a/2.png"), "'train' beside 'other'"),
        (tree("train/1.png", "test/2.png"), "images directly in 'test'"),
        (tree("val/a/1.png", "valid/a/2.png"), "'val' and 'valid'"),
    ],
)
def test_other_layouts_are_refused(given, said):
    with pytest.raises(DataError, match=said):
        find_classes(given)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    return stream.getvalue()


def test_folder_and_zip_list_alike(tmp_path: Path):
    names = ["a/1.png", "b/2.png", "b/.hidden.png", "__MACOSX/a/1.png", "b/Thumbs.db", ".git/x.png"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / name).write_bytes(png())
            archive.writestr(f"top/{name}", png())
        archive.mkdir("top/c") if hasattr(archive, "mkdir") else archive.writestr("top/c/", "")
    (tmp_path / "x" / "c").mkdir()
    on_disk, zipped = list_folder(tmp_path / "x"), list_zip(tmp_path / "x.zip")
    assert set(on_disk.files) == {"a/1.png", "b/2.png"}
    assert set(zipped.files) == {"top/a/1.png", "top/b/2.png"}
    assert on_disk.folders == {"a", "b", "c"}
    assert zipped.folders == {"top", "top/a", "top/b", "top/c"}


def test_identity_changes_with_the_file(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png())
    before = list_folder(tmp_path).files
    (tmp_path / "a" / "1.png").write_bytes(png() + b"x")
    assert list_folder(tmp_path).files != before


def test_no_zip_and_locked_zip_are_refused(tmp_path: Path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="zip archive"):
        list_zip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", png())
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1  # the flag of an encrypted member
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="password"):
        list_zip(path)
