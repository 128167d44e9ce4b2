"""One reader of prompt files: text and tables as spreadsheets and published sets write them."""

from __future__ import annotations

import csv
import json
import pathlib

import pytest

from advunlearn.errors import AdvUnlearnError
from advunlearn.prompts.prompt_files import read_prompt_file, read_prompts, read_rows

FILES = pathlib.Path(__file__).parents[1] / "data" / "prompt_files"
EXPECTED = json.loads((FILES / "expected.json").read_text())


def write(folder: pathlib.Path, name: str, content: str | bytes) -> pathlib.Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_from_the_wild_is_read_as_its_author_meant_it(name: str) -> None:
    assert read_prompts(FILES / name) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.csv", "prompt\r\na dog\r\na cat\r\n", ["a dog", "a cat"]),
        ("a.csv", "prompt\ra dog\ra cat\r", ["a dog", "a cat"]),
        ("a.csv", '\ufeffcase,Prompt\n1,"a dog, ink style"\n\n2,\n3, a cat\n', ["a dog, ink style", "a cat"]),
        ("a.csv", "case|prompt\n1|a dog, a cat; a cow\n", ["a dog, a cat; a cow"]),
        ("a.csv", "sep=\t\nprompt\tseed\na dog\t1\n", ["a dog"]),
        ("a.CSV", "a dog\na cat\n", ["a dog", "a cat"]),
        ("a.csv", "prompt,x\n# red dog,1\n", ["# red dog"]),
        ("a.csv", 'x,prompt\n1,"a ""red"" dog"\n', ['a "red" dog']),
        ("a.csv", "prompt;x\na dog\u2028in rain;1\na\x0ccat\x85here;2\n", ["a dog in rain", "a cat here"]),
        ("a.csv", 'prompt;note\na 5" pipe;"x"\n', ['a 5" pipe']),
        ("a.csv", 'note;prompt\n"5"" , ""6";a pipe\n', ["a pipe"]),
        ("a.tsv", 'note\tprompt\n1\ta dog, "ink" style\n', ['a dog, "ink" style']),
        ("a.tab", "prompt\tx\na dog\t1\n", ["a dog"]),
        ("a.csv", "prompt,x\na \x1d token,1\n", ["a \x1d token"]),  # white space to Python, a token to CLIP
        ("a.txt", "a dog, ink style\n# a comment\n\n  a # cat\r\na cow", ["a dog, ink style", "a # cat", "a cow"]),
        ("a.txt", "a dog\x0cin rain\u2029here\n", ["a dog in rain here"]),
        ("a.txt", "a dog".encode("utf-16"), ["a dog"]),
        ("a.csv", "x\tprompt\n1\tein Hündchen\n".encode("utf-16"), ["ein Hündchen"]),
    ],
)
def test_rows_are_the_csv_modules_and_lines_are_lines(
    tmp_path: pathlib.Path, name: str, content: str | bytes, prompts: list[str]
) -> None:
    assert read_prompts(write(tmp_path, name, content)) == prompts


@pytest.mark.parametrize(
    "header",
    ["prompt", "Prompt", "sensitive prompt", "adv_prompt", "adversarial_prompt", "prompts", "text", "caption"],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_published_set_names_its_prompts_in_its_own_way(tmp_path: pathlib.Path, header: str, delimiter: str) -> None:
    rows = [["", "categories", header, "evaluation_seed"], ["0", "a, b; c", "a dog,\tred; big", "7"]]
    with (tmp_path / "set.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    (row,) = read_rows(tmp_path / "set.csv")
    assert (row["prompt"], row["categories"], row["evaluation_seed"]) == ("a dog,\tred; big", "a, b; c", "7")


def test_of_an_attacks_columns_the_adversarial_one_is_read_unless_another_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "a.csv", "prompt,adv_prompt\na dog,xq dg\n")
    assert read_prompts(path) == ["xq dg"]
    assert read_prompts(path, column="PROMPT") == ["a dog"]


def test_a_column_that_cannot_be_told_is_asked_for_by_name(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "a.csv", "case;what\n1;a dog\n2;a cat\n")
    with pytest.raises(AdvUnlearnError, match=r"a\.csv: which column .* 'case', 'what'; give --prompt-column NAME"):
        read_prompts(path)
    assert read_prompts(path, column="what") == ["a dog", "a cat"]
    with pytest.raises(AdvUnlearnError, match="no column 'wat'; its first row is 'case', 'what'"):
        read_prompts(path, column="wat")


def test_a_csv_file_has_a_column_of_prompts_or_its_first(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "a.csv", "a dog,1\na cat,2\n")
    with pytest.raises(AdvUnlearnError, match="'a dog', '1'"):  # its first only if it has no other, or if told so
        read_prompts(path)
    assert read_prompts(path, column="1") == ["a dog", "a cat"]
    assert read_prompts(write(tmp_path, "b.csv", "a dog\n\na cat\n")) == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('prompt,x\na dog,"1\na cat,2\n', "a quote is not closed; the cell begins with '1 a cat,2'"),
        ("case,prompt\n", "holds no prompt"),
        ("", "holds no prompt"),
        (b"prompt\n\xff\xfe\xff", "is not UTF-8 text"),
        ("prompt\na\0b\n", "null characters"),
        ("prompt\n" + "a" * 200_000, "cannot be read as a table: line 2: field larger than field limit"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: pathlib.Path, content: str | bytes, says: str) -> None:
    with pytest.raises(AdvUnlearnError, match=says):
        read_prompts(write(tmp_path, "a.csv", content))


def test_a_file_that_was_read_is_described_by_its_number_its_first_and_its_last_prompt(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "a.csv", "case,Prompt\n1,a dog\n2,a cow\n3,a cat\n")
    assert (
        read_prompt_file(path).describe()
        == f"{path}: 3 prompts in column 'Prompt': the first 'a dog', the last 'a cat'"
    )
    path = write(tmp_path, "a.txt", "a dog " * 40)
    assert read_prompt_file(path).describe() == f"{path}: 1 prompt: {('a dog ' * 40)[:57] + '...'!r}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt\tseed\na cat\t1\n", "is the header of a table; name the file .csv or .tsv"),
        ("seed;Adv_Prompt\n1;a cat\n", "is the header of a table"),
        ('"prompt","seed"\n"a cat","1"\n', "is the header of a table"),
        ("Prompts\na cat\na dog\n", "is the header of a table"),
        ("text\na cat\n", ""),
        ('{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "is JSON; give text"),
        ('[\n"a cat",\n"a dog"\n]\n', "is JSON; give text"),
        ("poster, text\n[a cat]\n{a, dog}\n", ""),
    ],
)
def test_a_table_or_json_under_the_name_of_a_text_file_is_not_read_as_prompts(
    tmp_path: pathlib.Path, text: str, says: str
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    if says:
        with pytest.raises(AdvUnlearnError, match=says):
            read_prompts(path)
    else:
        assert read_prompts(path) == text.splitlines()
