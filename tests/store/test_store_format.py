"""The format's document and the code say the same."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from layercache.store import layout, schema

DOCUMENT = Path(__file__).parents[2] / "store" / "FORMAT.md"


def type_name(kind: pa.DataType, column: str = "") -> str:
    """Write an Arrow type as the document does."""
    if column == "vector":
        return "float32[d]"
    if pa.types.is_list(kind):
        return f"list of {type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        fields = [f"{field.name} {type_name(field.type)}{'?' if field.nullable else ''}" for field in kind]
        return f"({', '.join(fields)})"
    return {"string": "string", "float": "float32", "double": "float64"}.get(str(kind), str(kind))


def listing() -> str:
    """Write every table of the schema as the document lists it."""
    lines = []
    for name, table in schema.TABLES.items():
        lines += [f"**{name}**: {table.doc}. Key: {', '.join(table.key)}. Order: {', '.join(table.order)}.", ""]
        lines += column_lines(table.columns)
    for name, columns in (
        ("rows", schema.ROW_COLUMNS),
        ("results", schema.RESULTS),
        ("sample_scores", schema.SAMPLE_SCORES),
    ):
        lines += [f"**{name}**", "", *column_lines(columns)]
    return "\n".join(lines)


def column_lines(columns: tuple[schema.Column, ...]) -> list[str]:
    lines = ["| column | type | holds |", "|---|---|---|"]
    for column in columns:
        null = "?" if column.nullable else ""
        lines.append(
            f"| {column.name} | {type_name(column.type, column.name)}{null} | {column.doc.replace('|', chr(92) + '|')} |"
        )
    return [*lines, ""]


def test_the_document_lists_every_table_as_the_schema_has_it() -> None:
    assert listing().strip() in DOCUMENT.read_text(encoding="utf-8"), f"FORMAT.md must hold:\n\n{listing()}"


def test_the_document_names_the_format_and_its_first_reader() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"format {schema.FORMAT}" in text
    assert f'"reader": "{schema.READER}"' in text


def test_keys_and_orders_are_columns() -> None:
    for table in schema.TABLES.values():
        names = [column.name for column in table.columns]
        assert names[0] == "sample_id"
        assert set(table.key) | set(table.order) <= set(names)
        assert set(table.key) == set(table.order)


def test_canonical_json_is_what_the_document_says() -> None:
    value = {"b": [1, None, True], "a": 'ü"\n', "c": {"y": 1, "x": 2}}
    assert layout.canonical_json(value) == '{"a":"ü\\"\\n","b":[1,null,true],"c":{"x":2,"y":1}}'.encode()
    assert json.loads(layout.canonical_json(value)) == value


def test_hashes_are_what_the_document_says() -> None:
    ids = hashlib.sha256(b"a\nb\n").hexdigest()
    assert layout.ids_digest(["b", "a"]) == ids
    text = '{"outputs":{"hidden:resid:mean@prompt":[0,1],"tokens":null},"replaces":[],"samples":"' + ids + '"}'
    outputs = {"tokens": None, "hidden:resid:mean@prompt": [0, 1]}
    assert layout.shard_name(ids, outputs, []) == "s" + hashlib.sha256(text.encode()).hexdigest()[:16]
