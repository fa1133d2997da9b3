"""The log keeps every evaluation in order, and its file gives each of them back exactly or is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import BnasError, Subnet
from bnas.search import EvaluationLog, MetricError, RecordError, SearchError
from bnas.search.objective import RESERVED

NAMES = st.text(min_size=1, max_size=6).filter(str.isprintable).filter(lambda name: name not in RESERVED)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def logs(draw: st.DrawFn) -> EvaluationLog:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    log = EvaluationLog()
    for width in draw(st.lists(st.integers(1, 10**6), unique=True, max_size=5)):
        subnet = Subnet({draw(NAMES): width}, draw(st.frozensets(NAMES, max_size=2)), {draw(NAMES): 3})
        log.record(subnet, {name: draw(NUMBERS) for name in names}, draw(st.floats(0, 1e6)))
    return log


def small_log(count: int = 3) -> EvaluationLog:
    log = EvaluationLog()
    for i in range(count):
        log.record(Subnet({"w": i + 1}), {"accuracy": 0.1 * i, "macs": 10.0 * i}, 0.25)
    return log


@given(log=logs())
def test_csv_gives_back_every_number_exactly(log: EvaluationLog, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    log.write_csv(path)
    again = EvaluationLog.read_csv(path)
    assert list(again) == list(log)
    assert [list(one.values.items()) for one in again] == [list(one.values.items()) for one in log]
    assert [one.seconds for one in again] == [one.seconds for one in log]
    assert again.names == log.names


@given(number=NUMBERS)
def test_a_number_that_is_one_step_off_is_another_log(number: float) -> None:
    one, other = EvaluationLog(), EvaluationLog()
    one.record(Subnet({"w": 1}), {"a": number}, 0.0)
    other.record(Subnet({"w": 1}), {"a": np.nextafter(number, 0.0 if number else 1.0)}, 0.0)
    assert list(one) != list(other)


def test_columns_are_index_values_seconds_and_subnet(tmp_path: Path) -> None:
    small_log(2).write_csv(tmp_path / "log.csv")
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "accuracy", "macs", "seconds", "subnet"]
    assert [row["index"] for row in rows] == ["0", "1"]
    assert Subnet.from_json(json.loads(rows[1]["subnet"])) == Subnet({"w": 2})


def test_subnet_larger_than_the_csv_modules_limit_is_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    log, limit = EvaluationLog(), csv.field_size_limit()
    log.record(Subnet({f"layer{i}": i for i in range(10_000)}), {"a": 1.0}, 0.0)
    log.write_csv(tmp_path / "log.csv")
    assert (tmp_path / "log.csv").stat().st_size > limit
    assert list(EvaluationLog.read_csv(tmp_path / "log.csv")) == list(log)
    assert csv.field_size_limit() == limit


def test_new_evaluations_go_on_after_those_read(tmp_path: Path) -> None:
    small_log(2).write_csv(tmp_path / "log.csv")
    log = EvaluationLog.read_csv(tmp_path / "log.csv")
    assert log.record(Subnet({"w": 9}), {"macs": 1, "accuracy": 2}, 0.0).index == 2
    assert list(log)[-1].values == {"accuracy": 2.0, "macs": 1.0}
    assert log.get(Subnet({"w": 9})) is list(log)[-1]
    assert log.get(Subnet({"w": 10})) is None


HEAD = "index,accuracy,seconds,subnet\n"
SUBNET = '"{""widths"": {""w"": 1}, ""skipped"": [], ""kernels"": {}}"'


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param("", 1, "first line must be", id="empty"),
        pytest.param("index,accuracy,subnet\n", 1, "first line must be", id="header"),
        pytest.param("index,a,a,seconds,subnet\n", 1, "first line must be", id="repeated-column"),
        pytest.param(HEAD + "0,0.5\n", 2, "2 columns where the first line has 4", id="cut-row"),
        pytest.param(HEAD + f"1,0.5,1.0,{SUBNET}\n", 2, "index '1' where 0 is next", id="index"),
        pytest.param(HEAD + f"0,half,1.0,{SUBNET}\n", 2, "accuracy.*half", id="no-number"),
        pytest.param(HEAD + f"0,nan,1.0,{SUBNET}\n", 2, "'accuracy' is nan", id="nan"),
        pytest.param(HEAD + f"0,0.5,soon,{SUBNET}\n", 2, "seconds.*soon", id="seconds"),
        pytest.param(HEAD + "0,0.5,1.0,{\n", 2, "", id="no-json"),
        pytest.param(HEAD + "0,0.5,1.0,[]\n", 2, "", id="no-subnet"),
        pytest.param(HEAD + '0,0.5,1.0,"{""width"": {}}"\n', 2, "no 'width'", id="subnet-key"),
        pytest.param(HEAD + f'0,0.5,1.0,{SUBNET}\n1,0.5,1.0,"open', 3, "", id="open-quote"),
        pytest.param(HEAD + f"0,0.5,1.0,{SUBNET}\n1,0.5,1.0,{SUBNET}\n", 3, "evaluation 0 of this log", id="twice"),
    ],
)
def test_malformed_file_is_refused_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(RecordError, match=rf"log\.csv:{line}: .*{reason}"):
        EvaluationLog.read_csv(path)


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"log\.csv:1: "):
        EvaluationLog.read_csv(tmp_path / "log.csv")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_value_that_cannot_be_compared_is_refused_by_name(value: float) -> None:
    log = small_log()
    with pytest.raises(MetricError, match=r"77.*'accuracy' is (nan|-?inf)") as caught:
        log.record(Subnet({"w": 77}), {"accuracy": value, "macs": 1.0}, 0.0)
    assert isinstance(caught.value, BnasError)
    assert len(log) == 3


@pytest.mark.parametrize("value", ["high", None, 1j, 10**400])
def test_value_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(MetricError, match=r"'accuracy' is .*, not a number"):
        small_log().record(Subnet({"w": 77}), {"accuracy": value, "macs": 1.0}, 0.0)


def test_names_are_those_of_the_first_evaluation() -> None:
    with pytest.raises(RecordError, match=r"'mac' is not in all evaluations.*did you mean 'macs'"):
        small_log().record(Subnet({"w": 77}), {"accuracy": 1.0, "mac": 1.0}, 0.0)
    with pytest.raises(SearchError, match="'index' is taken"):
        EvaluationLog().record(Subnet({"w": 77}), {"index": 1.0}, 0.0)


def test_subnet_is_recorded_once() -> None:
    with pytest.raises(RecordError, match="is evaluation 1 of this log already"):
        small_log().record(Subnet({"w": 2}), {"accuracy": 1.0, "macs": 1.0}, 0.0)
