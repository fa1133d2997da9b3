"""A table of evaluations gives each of them back exactly, or is refused with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import Subnet
from bnas.search import Evaluation, RecordError
from bnas.search.evaluation import read_csv, write_csv
from bnas.search.objectives import RESERVED

NAMES = st.text(min_size=1, max_size=6).filter(str.isprintable).filter(lambda name: name not in RESERVED)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw: st.DrawFn) -> list[Evaluation]:
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=4))
    rows = []
    for width in draw(st.lists(st.integers(1, 10**6), unique=True, max_size=5)):
        subnet = Subnet({draw(NAMES): width}, draw(st.frozensets(NAMES, max_size=2)), {draw(NAMES): 3})
        failure = draw(st.none() | NAMES)
        values = {} if failure else {name: draw(NUMBERS) for name in names}
        rows.append(Evaluation(len(rows), subnet, values, draw(st.floats(0, 1e6)), failure))
    return rows


@given(rows=tables())
def test_every_number_is_given_back_exactly(rows: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    write_csv(path, rows)
    again = read_csv(path)
    assert list(again) == rows
    assert [list(one.values.items()) for one in again] == [list(one.values.items()) for one in rows]
    assert [one.seconds for one in again] == [one.seconds for one in rows]


@given(number=NUMBERS)
def test_a_number_that_is_one_step_off_is_another_table(number: float) -> None:
    other = float(np.nextafter(number, 0.0 if number else 1.0))
    one, two = (Evaluation(0, Subnet({"w": 1}), {"a": value}, 0.0) for value in (number, other))
    assert one != two


def test_columns_are_index_values_seconds_failure_and_subnet(tmp_path: Path) -> None:
    rows = [Evaluation(0, Subnet({"w": 1}), {}, 0.5, "no memory"), Evaluation(1, Subnet({"w": 2}), {"macs": 3.0}, 0.5)]
    write_csv(tmp_path / "table.csv", rows)
    with open(tmp_path / "table.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["index", "macs", "seconds", "failure", "subnet"]
    assert [(row["index"], row["macs"], row["failure"]) for row in found] == [("0", "", "no memory"), ("1", "3.0", "")]
    assert Subnet.from_json(json.loads(found[1]["subnet"])) == Subnet({"w": 2})


def test_subnet_larger_than_the_csv_modules_limit_is_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    rows, limit = (
        (Evaluation(0, Subnet({f"layer{i}": i for i in range(10_000)}), {"a": 1.0}, 0.0),),
        csv.field_size_limit(),
    )
    write_csv(tmp_path / "table.csv", rows)
    assert (tmp_path / "table.csv").stat().st_size > limit
    assert read_csv(tmp_path / "table.csv") == rows
    assert csv.field_size_limit() == limit


HEAD = "index,accuracy,seconds,failure,subnet\n"
SUBNET = '"{""widths"": {""w"": 1}, ""skipped"": [], ""kernels"": {}}"'


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param("", 1, "first line must be", id="empty"),
        pytest.param("index,accuracy,subnet\n", 1, "first line must be", id="header"),
        pytest.param("index,a,a,seconds,failure,subnet\n", 1, "first line must be", id="repeated-column"),
        pytest.param(HEAD + "0,0.5\n", 2, "2 columns, but the first line has 5", id="cut-row"),
        pytest.param(HEAD + f"1,0.5,1.0,,{SUBNET}\n", 2, "index '1', but the next index is 0", id="index"),
        pytest.param(HEAD + f"0,half,1.0,,{SUBNET}\n", 2, "accuracy.*half", id="no-number"),
        pytest.param(HEAD + f"0,nan,1.0,,{SUBNET}\n", 2, "'accuracy' is nan", id="nan"),
        pytest.param(HEAD + f"0,0.5,soon,,{SUBNET}\n", 2, "seconds.*soon", id="seconds"),
        pytest.param(HEAD + "0,0.5,1.0,,{\n", 2, "", id="no-json"),
        pytest.param(HEAD + "0,0.5,1.0,,[]\n", 2, "", id="no-subnet"),
        pytest.param(HEAD + '0,0.5,1.0,,"{""width"": {}}"\n', 2, "no 'width'", id="subnet-key"),
        pytest.param(HEAD + f'0,0.5,1.0,,{SUBNET}\n1,0.5,1.0,,"open', 3, "", id="open-quote"),
    ],
)
def test_malformed_file_is_refused_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(RecordError, match=rf"table\.csv:{line}: .*{reason}"):
        read_csv(path)


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"table\.csv:1: "):
        read_csv(tmp_path / "table.csv")
