"""Names that users give to files, and paths that must stay inside a folder."""

from __future__ import annotations

import pathlib

import pytest

from advunlearn.errors import AdvUnlearnError
from advunlearn.files import MAX_NAME, check_name, find_inside, find_name_fault


@pytest.mark.parametrize("name", ["robust_clip", "a.b-c_1", "_1", "console", "com10", "\u96c6\u90ae", "n" * MAX_NAME])
def test_a_name_of_letters_digits_and_dots_is_valid(name: str) -> None:
    assert find_name_fault(name) == "" and check_name(name) == name


@pytest.mark.parametrize("name", ["CON", "nul.txt", "aux", "Com1.safetensors", "LPT\xb9", "prn"])
def test_the_name_of_a_device_of_windows_is_refused_with_any_ending(name: str) -> None:
    assert "is that of a device on Windows" in find_name_fault(name)
    assert "is that of a device on Windows" in find_name_fault(f"runs/{name}/a", folders=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "-rf",
        ".hidden",
        "a.",
        "a ",
        " a",
        "a b",
        "a/b",
        "../a",
        "/etc/a",
        "C:a",
        "a\\b",
        "a\n",
        "a\0",
        "a%d",
        3,
    ],
)
def test_anything_else_is_no_name(name: object) -> None:
    assert "is invalid; use letters, digits, '.', '_', '-'; begin with a letter" in find_name_fault(name)


def test_a_name_may_have_folders_only_where_that_is_said() -> None:
    assert find_name_fault("runs/a.1/b", folders=True) == ""
    for name in ("my clip", "%year%-%month%/robust %hour%%minute%", "%day%"):  # as ComfyUI's SaveImage takes them
        assert find_name_fault(name, folders=True) == ""
        assert "is invalid" in find_name_fault(name)
    for name in ("a ", " a", "a/ b", "a%d", "%years%", "a%", "../%year%"):
        assert "is invalid" in find_name_fault(name, folders=True)
    for name in ("a/", "/a", "a//b", "a/../b", "a/./b", "a/-rf", "a./b"):
        assert "and '/' for folders" in find_name_fault(name, folders=True), name


def test_a_name_that_is_too_long_is_refused_in_a_short_message() -> None:
    assert "is longer than 200 bytes" in find_name_fault("n" * 201)
    assert "is longer than 200 bytes" in find_name_fault("\u96c6" * 67)  # three bytes each
    assert "is longer than 190 bytes" in find_name_fault("n" * 191, reserved=10)
    assert find_name_fault("n" * 190, reserved=10) == ""
    for name in ("n" * 10**6, "." * 10**6):
        with pytest.raises(AdvUnlearnError) as error:
            check_name(name)
        assert len(str(error.value)) < 250


def test_a_folder_is_found_inside_the_roots_only(tmp_path: pathlib.Path) -> None:
    first, second, elsewhere = (tmp_path / name for name in ("first", "second", "elsewhere"))
    for folder in (first, second / "vit", elsewhere / "vit"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (second / "linked").symlink_to(elsewhere / "vit", target_is_directory=True)
    roots = [first, second]
    for name in ("vit", "other/../vit", str(second / "vit")):
        assert find_inside(name, roots, "config.json") == second / "vit"
    assert find_inside("linked", roots, "config.json") == second / "linked"  # a link that its owner put there
    assert find_inside("gone", roots, "config.json") is None
    for name in ("../elsewhere/vit", "../../etc", str(elsewhere / "vit"), "vit/../../elsewhere/vit", "/etc"):
        with pytest.raises(AdvUnlearnError, match=f"is outside of {first}, {second}; put the folder there"):
            find_inside(name, roots, "config.json")
