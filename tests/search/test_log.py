"""The log's file holds every evaluation before it is used, and is given back exactly or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import BnasError, Subnet
from bnas.runtime.storage.files import checksum
from bnas.search import EvaluationLog, MetricError, RecordError, SearchError
from bnas.search.log import RepairWarning

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def fill(log: EvaluationLog, count: int = 3) -> EvaluationLog:
    for i in range(count):
        log.record(Subnet({"w": i + 1}), {"accuracy": 0.1 * i, "macs": 10.0 * i}, 0.25)
    return log


@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS) | st.text(), max_size=5))
def test_file_gives_back_every_evaluation_exactly(
    rows: list[tuple[float, float] | str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = EvaluationLog(path, "abc")
    for i, row in enumerate(rows):
        if isinstance(row, str):
            log.record_failure(Subnet({"w": i}), row, 0.1)
        else:
            log.record(Subnet({"w": i}), {"a": row[0], "b": row[1]}, 0.1)
    again = EvaluationLog(path, "abc")
    assert list(again) == list(log)
    assert [list(one.values.items()) for one in again] == [list(one.values.items()) for one in log]
    assert again.names == log.names


def test_each_evaluation_is_in_the_file_before_record_returns(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "made" / "log.jsonl")
    for count in (1, 2, 3):
        log.record(Subnet({"w": count}), {"a": 1.0}, 0.0)
        assert len(EvaluationLog(tmp_path / "made" / "log.jsonl")) == count


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_line_that_was_being_written_is_dropped_and_the_log_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    whole = list(fill(EvaluationLog(path)))
    path.write_bytes(path.read_bytes()[:-cut])
    log = EvaluationLog(path)
    assert list(log) == whole[:2]
    log.record(Subnet({"w": 9}), {"macs": 1, "accuracy": 2}, 0.0)
    again = list(EvaluationLog(path))
    assert again[:2] == whole[:2]
    assert again[2].values == {"accuracy": 2.0, "macs": 1.0}


def test_first_line_that_was_being_written_makes_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"format": "bnas-ev')
    fill(EvaluationLog(path, "abc"))
    assert len(EvaluationLog(path, "abc")) == 3


def test_file_of_another_supernetwork_is_refused_by_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    fill(EvaluationLog(path, "abc"))
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"log\.jsonl: holds evaluations of another.*fingerprint abc, not def"):
        EvaluationLog(path, "def")
    assert path.read_bytes() == before
    assert len(EvaluationLog(path)) == 3  # who asks for none gets all


def sealed(text: str) -> str:
    """A line as a log has it: with its checksum."""
    data = json.loads(text)
    return json.dumps({**data, "check": checksum(json.dumps(data).encode())[:16]}) + "\n"


HEAD = sealed('{"format": "bnas-evaluations", "version": 2, "fingerprint": ""}')
ROW = '{"index": 0, "subnet": {"widths": {"w": 1}}, "seconds": 1.0, "values": {"a": 0.5}}'
NEXT = '{"index": 1, "subnet": {"widths": {"w": 2}}, "seconds": 1.0, "values": {"b": 0.5}}'
AGAIN = ROW.replace("0,", "1,", 1)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param("[]\n", 1, "of format 'bnas-evaluations', version 2", id="head"),
        pytest.param('{"my only copy": 1}', 1, "of format", id="another-file-without-a-line"),
        pytest.param("notes", 1, "of format", id="a-text"),
        pytest.param("index,accuracy\n", 1, "of format", id="csv"),
        pytest.param(HEAD.replace(" 2", " 1"), 1, "version 2", id="version"),
        pytest.param(HEAD.replace("check", "chock"), 1, "version 2", id="head-without-checksum"),
        pytest.param(HEAD + "{\n", 2, "", id="no-json"),
        pytest.param(HEAD + "\n", 2, "", id="empty-line"),
        pytest.param(HEAD + ROW + "\n", 2, "its checksum does not match", id="no-checksum"),
        pytest.param(
            HEAD + sealed(ROW).replace("0.5", "0.6"), 2, "its checksum does not match; .*", id="another-number"
        ),
        pytest.param(HEAD + sealed(ROW.replace('"values"', '"value"')), 2, "KeyError: 'values'", id="key"),
        pytest.param(HEAD + sealed(ROW.replace("0.5", "NaN")), 2, "'a' is nan", id="nan"),
        pytest.param(HEAD + sealed(ROW.replace("0,", "1,")), 2, "index 1, but the next index is 0", id="index"),
        pytest.param(HEAD + sealed(ROW.replace("widths", "width")), 2, "no 'width'", id="subnet"),
        pytest.param(HEAD + sealed(ROW) + sealed(AGAIN), 3, "is already evaluation 0 of this", id="twice"),
        pytest.param(
            HEAD + sealed(ROW) + sealed(ROW.replace("0.5", "0.6")),
            3,
            "index 0, but the next index is 1",
            id="two-searches",
        ),
        pytest.param(HEAD + sealed(ROW) + sealed(NEXT), 3, "values b, but earlier lines have a", id="names"),
    ],
)
def test_malformed_file_is_refused_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=rf"log\.jsonl:{line}: .*{reason}"):
        EvaluationLog(path)
    assert path.read_text() == text


def test_what_two_processes_wrote_of_one_search_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    fill(EvaluationLog(path))
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(line + line for line in lines))
    with pytest.warns(RepairWarning, match=r"two processes .*; removed 3 duplicate evaluations"):
        log = EvaluationLog(path)
    assert list(log) == list(fill(EvaluationLog()))
    assert path.read_text() == head + "".join(lines)
    assert list(EvaluationLog.read(path)) == list(log)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"is a folder; give a file, such as .*evaluations\.jsonl"):
        EvaluationLog(tmp_path)


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(RecordError, match=r"log\.jsonl:1: "):
        EvaluationLog(tmp_path / "log.jsonl")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_value_that_cannot_be_compared_is_refused_by_name(value: float) -> None:
    log = fill(EvaluationLog())
    with pytest.raises(MetricError, match=r"77.*'accuracy' is (nan|-?inf)") as caught:
        log.record(Subnet({"w": 77}), {"accuracy": value, "macs": 1.0}, 0.0)
    assert isinstance(caught.value, BnasError)
    assert len(log) == 3


@pytest.mark.parametrize("value", ["high", None, 1j, 10**400])
def test_value_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(MetricError, match=r"'accuracy' is .*, not a number"):
        fill(EvaluationLog()).record(Subnet({"w": 77}), {"accuracy": value, "macs": 1.0}, 0.0)  # type: ignore[dict-item]


def test_names_are_those_of_the_first_evaluation_that_gave_any() -> None:
    log = EvaluationLog()
    log.record_failure(Subnet({"w": 70}), "no memory", 0.0)
    with pytest.raises(RecordError, match=r"evaluations have no value 'mac', and that of .* has one: use the obj"):
        fill(log).record(Subnet({"w": 77}), {"accuracy": 1.0, "mac": 1.0}, 0.0)
    with pytest.raises(SearchError, match="'index' is reserved"):
        EvaluationLog().record(Subnet({"w": 77}), {"index": 1.0}, 0.0)


def test_subnet_is_recorded_once_and_found_again() -> None:
    log = fill(EvaluationLog())
    with pytest.raises(RecordError, match="is already evaluation 1 of this log"):
        log.record(Subnet({"w": 2}), {"accuracy": 1.0, "macs": 1.0}, 0.0)
    with pytest.raises(RecordError, match="is already evaluation 1 of this log"):
        log.record_failure(Subnet({"w": 2}), "", 0.0)
    assert log.get(Subnet({"w": 2})) is list(log)[1]
    assert log.get(Subnet({"w": 10})) is None


def test_file_is_lines_of_json(tmp_path: Path) -> None:
    fill(EvaluationLog(tmp_path / "log.jsonl", "abc"), 1)
    head, row = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert {**head, "check": ""} == {"format": "bnas-evaluations", "version": 2, "fingerprint": "abc", "check": ""}
    assert row["values"] == {"accuracy": 0.0, "macs": 0.0}
    assert Subnet.from_json(row["subnet"]) == Subnet({"w": 1})


def test_a_log_is_read_while_somebody_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EvaluationLog(path, "print")
    log.record(Subnet({"w": 1}), {"accuracy": 0.5}, 0.1)
    with path.open("ab") as file:
        file.write(b'{"index": 1, "subn')
    before = path.read_bytes()
    found = EvaluationLog.read(path)
    assert [one.values for one in found] == [{"accuracy": 0.5}]
    assert found.path is None
    assert path.read_bytes() == before
    assert len(EvaluationLog.read(path)) == 1
    EvaluationLog(path, "print")
    assert path.read_bytes() != before  # a writer drops the line that was cut off
    path.write_bytes(b"something else\n")
    with pytest.raises(RecordError, match="must be a file of format"):
        EvaluationLog.read(path)
    path.write_bytes(b"")
    assert len(EvaluationLog.read(path)) == 0
