"""Prompt files: text with one prompt per line, or a table (.csv, .tsv) with a column of prompts."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import pathlib
import re
from dataclasses import dataclass

from ..errors import AdvUnlearnError

TABLES = (".csv", ".tsv", ".tab")
DELIMITERS = ",;\t|"
# Names of the column of prompts, best first; "sensitive prompt" and "adv_prompt" are those of published sets, in which
# a column `prompt` may hold the prompt that was attacked. Compared in lower case, with spaces for underscores.
PROMPT_COLUMNS = (
    "sensitive prompt",
    "adv prompt",
    "adversarial prompt",
    "prompt",
    "prompts",
    "target prompt",
    "text",
    "caption",
)
# Unicode's white space. Python's also has the separators \x1c to \x1f, which are tokens to CLIP and stay in a prompt.
BLANK = r"[^\S\x1c-\x1f]"
LINE_BREAKS = rf"{BLANK}*[\n\r\v\f\x85\u2028\u2029]{BLANK}*"
ENDS = rf"\A{BLANK}+|{BLANK}+\Z"
END = "\x00"  # last row of a table while it is parsed: a quote that is not closed swallows it
SHOWN_LENGTH = 60  # characters of a prompt that messages show


@dataclass(frozen=True)
class PromptFile:
    """The content of a prompt file; each row has at least a "prompt", which is not empty."""

    path: pathlib.Path
    rows: list[dict[str, str]]
    column: str = ""  # the column of prompts, as the header has it; "" for text and for a table without header

    @property
    def is_table(self) -> bool:
        """Whether the file is a table, and not text."""
        return self.path.suffix.lower() in TABLES

    @property
    def prompts(self) -> list[str]:
        """The prompts, in the file's order."""
        return [row["prompt"] for row in self.rows]

    def describe(self) -> str:
        """Return the number of prompts, the first and the last: what a user sees of a file that was read."""
        first, last = (_shorten(prompt) for prompt in (self.prompts[0], self.prompts[-1]))
        column = f" in column {self.column!r}" if self.column else ""
        ends = f"the first {first}, the last {last}" if len(self.rows) > 1 else first
        return f"{self.path}: {len(self.rows)} prompt{'s' * (len(self.rows) > 1)}{column}: {ends}"


def read_prompt_file(path: str | pathlib.Path, what: str = "prompt", column: str = "") -> PromptFile:
    """Read a prompt file.

    A line of a text file is a prompt; empty lines and lines that start with # are skipped. A table (.csv, .tsv, .tab)
    is read by the csv module, with the delimiter of its line `sep=` or the one that its first row fits; its cells may
    hold line breaks, which become spaces. Rows without a prompt are skipped. A table of one column needs no header.

    Args:
        path: the file.
        what: the meaning of a line, for error messages.
        column: the table's column of prompts, by its name or, without a header, by its number from 1 (empty: the
            first of `PROMPT_COLUMNS` that the header has). Text files have none.

    Raises AdvUnlearnError if the file is missing, is no text, or holds no prompt, for a table whose column of prompts
    cannot be told, and for a table or JSON under the name of a text file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give a text file with one {what} per line")
    text = _decode(path, what)
    name = ""
    if path.suffix.lower() in TABLES:
        rows, name = parse_table(text, str(path), column)
    else:
        lines = parse_lines(text)
        check_is_text(lines, str(path))
        rows = [{"prompt": line} for line in lines]
    if not rows:
        raise AdvUnlearnError(f"{path} holds no prompt; write one {what} per line")
    return PromptFile(path, rows, name)


def read_rows(path: str | pathlib.Path, what: str = "prompt", column: str = "") -> list[dict[str, str]]:
    """Read the rows of a prompt file, see `read_prompt_file`."""
    return read_prompt_file(path, what, column).rows


def read_prompts(path: str | pathlib.Path, what: str = "prompt", column: str = "") -> list[str]:
    """Read the prompts of a file, see `read_prompt_file`."""
    return read_prompt_file(path, what, column).prompts


def parse_lines(text: str) -> list[str]:
    """Return the lines of a text, without empty lines and comments. Only line feeds and carriage returns end a line."""
    lines = (join_lines(line) for line in re.split(r"\r\n|\r|\n", text))
    return [line for line in lines if line and not line.startswith("#")]


def check_is_text(lines: list[str], where: str) -> None:
    """Raise AdvUnlearnError for the lines of a table or of JSON, each of which would be a prompt."""
    first = lines[0] if lines else ""
    for delimiter in DELIMITERS:
        cells = [_plain_name(cell.strip(" \"'")) for cell in first.split(delimiter)]
        # "poster, text" and "text" are prompts.
        columns = {name for name in PROMPT_COLUMNS if delimiter != "," or "prompt" in name}
        if columns & set(cells) and (len(cells) > 1 or delimiter == ","):
            raise AdvUnlearnError(
                f"{where}: the first line {_shorten(first)} is the header of a table; name the file .csv or .tsv, or "
                "remove everything but the prompts"
            )
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        start = first if first.endswith(("}", "]")) else "\n".join(lines)
        if first.startswith(("{", "[")) and isinstance(json.loads(start), dict | list):
            raise AdvUnlearnError(f"{where} is JSON; give text with one prompt per line, or a table (.csv, .tsv)")


def join_lines(text: str) -> str:
    """Replace line breaks, with the blanks around them, by a space: a prompt is one line in every list of a run."""
    return re.sub(ENDS, "", re.sub(LINE_BREAKS, " ", text))


def parse_table(text: str, where: str, column: str = "") -> tuple[list[dict[str, str]], str]:
    """Return the rows of a table that have a prompt, by lower-case column names, and the name of the prompts' column.

    Args:
        text: the table.
        where: the file, for error messages.
        column: the column of prompts, see `read_prompt_file`.
    """
    delimiter, text = find_delimiter(text, where, column)
    cells = parse_cells(text, delimiter, where)
    if not cells:
        return [], ""
    index, has_header = find_column(cells[0], column, where)
    if max(map(len, cells)) == 1 and not has_header:
        index = 0
    if index is None:
        header = ", ".join(map(repr, cells[0]))
        raise AdvUnlearnError(
            f"{where}: which column holds the prompts? Its first row is {header}; give --prompt-column NAME with one "
            "of these names, or without a header --prompt-column with the column's number from 1; prompts alone, with "
            "commas in them, go into a .txt file, one per line"
        )
    names = [cell.lower() for cell in cells[0]] if has_header else []
    rows = ([*row, *[""] * (index + 1 - len(row))] for row in cells[has_header:])
    found = [{**dict(zip(names, row, strict=False)), "prompt": row[index]} for row in rows if row[index]]
    return found, cells[0][index] if has_header else ""


def find_column(header: list[str], column: str, where: str) -> tuple[int | None, bool]:
    """Return the index of the column of prompts, None if it cannot be told, and whether the row is a header.

    Raises AdvUnlearnError for a named column that the header does not have.
    """
    names = [_plain_name(cell) for cell in header]
    if column:
        if column.isdigit() and 1 <= int(column) <= len(header):
            return int(column) - 1, False
        if _plain_name(column) in names:
            return names.index(_plain_name(column)), True
        raise AdvUnlearnError(f"{where} has no column {column!r}; its first row is {', '.join(map(repr, header))}")
    known = [names.index(name) for name in PROMPT_COLUMNS if name in names]
    return (known[0], True) if known else (None, False)


def find_delimiter(text: str, where: str, column: str = "") -> tuple[str, str]:
    """Return the delimiter of a table, and the table without a line `sep=`.

    It is the delimiter by which the first row has a known column of prompts, otherwise the one that splits every row
    into the same number of cells; a table of one column has none, for which a comma is as good as any.
    """
    if line := re.match(r"sep=(.)(?:\r\n|\r|\n|$)", text, re.IGNORECASE):
        return line[1], text[line.end() :]
    wanted = {_plain_name(column)} if column and not column.isdigit() else set(PROMPT_COLUMNS)
    tables = {}
    for delimiter in DELIMITERS:
        with contextlib.suppress(AdvUnlearnError):  # by a wrong delimiter quotes may stay open
            tables[delimiter] = parse_cells(text, delimiter, where)
    for delimiter, cells in tables.items():
        if cells and len(cells[0]) > 1 and wanted & {_plain_name(cell) for cell in cells[0]}:
            return delimiter, text
    for delimiter, cells in tables.items():
        if len({len(row) for row in cells}) == 1 and len(cells[0]) > 1:
            return delimiter, text
    return DELIMITERS[0], text


def parse_cells(text: str, delimiter: str, where: str) -> list[list[str]]:
    """Return the rows of cells that the csv module reads, without blanks at the ends and without empty rows.

    Raises AdvUnlearnError for a quote that is not closed, which would make one cell of the rest of the file.
    """
    reader = csv.reader(io.StringIO(f"{text}\n{END}", newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise AdvUnlearnError(f"{where} cannot be read as a table: line {reader.line_num}: {error}") from error
    if rows[-1] != [END]:
        start = _shorten(join_lines(rows[-1][-1].removesuffix(END)))
        raise AdvUnlearnError(f"{where}: a quote is not closed; the cell begins with {start}")
    cells = [[join_lines(cell) for cell in row] for row in rows[:-1]]
    return [row for row in cells if any(row)]


def _decode(path: pathlib.Path, what: str) -> str:
    """Return the text of a file: UTF-8, or what its byte order mark says, which spreadsheets write."""
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise AdvUnlearnError(
            f"{path} is not UTF-8 text ({error}); save it as UTF-8 text with one {what} per line"
        ) from error
    if "\x00" in text:
        raise AdvUnlearnError(f"{path} holds null characters, so it is no text; give one {what} per line")
    return text


def _plain_name(cell: str) -> str:
    """Return a column's name for comparisons: "Adv_Prompt" is "adv prompt"."""
    return " ".join(cell.lower().replace("_", " ").split())


def _shorten(prompt: str) -> str:
    return repr(prompt if len(prompt) <= SHOWN_LENGTH else prompt[: SHOWN_LENGTH - 3] + "...")
