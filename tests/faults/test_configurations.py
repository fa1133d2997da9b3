"""Broken configurations: a part of what ``configurations.py`` tries, each kind by name, and that a crash is seen."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import configurations
import pytest
from broken import HEAD, LAUGHS, TINY, Case
from configurations import at_most, built, command_line, many, prepared, tried, unclear

from bnas.config.file import load_config, with_changes
from bnas.config.section import ConfigurationError
from bnas.passes import BnasError
from bnas.passes.errors import ElasticityError
from bnas.run.runner import job_of

EXAMPLES = 250


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared(tmp_path)


def test_fuzzed_configurations_work_or_are_refused(tmp_path: Path) -> None:
    table = many(EXAMPLES, tmp_path)
    assert not table.kinds, "\n".join(table.lines(0))
    assert table.counts["accepted"] > EXAMPLES // 50
    assert table.counts["refused"] > EXAMPLES // 2


def crash(*_: Any) -> None:
    raise TypeError("'NoneType' object is not iterable")


def refuse_in_python(*_: Any) -> None:
    raise BnasError("<class 'int'> is not iterable")


def wait(*_: Any) -> None:
    time.sleep(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of an alarm in a callback of weakref
@pytest.mark.parametrize(
    ("fault", "kind"), [(crash, "stack trace"), (refuse_in_python, "unclear message"), (wait, "hang")]
)
def test_a_fault_of_bnas_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, kind: str) -> None:
    case = Case("c.json", json.dumps(TINY).encode())
    assert tried(case, folder).kind == "accepted"
    monkeypatch.setattr(configurations, "job_settings", fault)
    if kind == "hang":
        monkeypatch.setattr(configurations, "LIMIT", 0.2)
    assert tried(case, folder).kind == kind
    assert many(120, folder).counts[kind]


@pytest.mark.parametrize(
    "text",
    ["", "a\x00b", "a\tb", "two\n\nparagraphs", "x" * 9000, "expected <class 'int'>", "\n  line" * 200, "\ud800"],
)
def test_a_message_that_no_user_understands_is_seen(text: str) -> None:
    assert unclear(text)
    assert not unclear("c.json: 2 faults\n  a is 3: must be text\n  b is not a key")


DEEP = "[" * 50_000
NESTED = json.dumps(TINY | {"model_options": {"a": json.loads("[" * 40 + "]" * 40)}})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.json", DEEP, "is nested too deep; allowed are 30 levels"),
        ("c.json5", "{a: " + DEEP, "is nested too deep"),
        ("c.yaml", DEEP, "is nested too deep"),
        ("c.json", NESTED, r"model_options.a\[0\] is nested too deep"),
        ("c.yaml", HEAD + LAUGHS, "has more than 200,000 values"),
        ("c.yaml", HEAD + "model_options: &a {b: *a}\n", "is nested too deep"),
        ("c.yaml", HEAD + "log_dir: 2001-99-99\n", "line 4, column 10: '2001-99-99' cannot be read as timestamp"),
        ("c.yaml", HEAD + "log_dir: 2001-09-09\n", r"log_dir is .*, a date; allowed are text, numbers"),
        ("c.yaml", HEAD + "model_options: {a: !!binary /w==}\n", "model_options.a is .*, a bytes; allowed"),
        ("c.yaml", HEAD + "model_options: {a: !!set {b}}\n", "model_options.a is .*, a set; allowed"),
        ("c.yaml", HEAD + "model: again\n", "line 4, column 1: the key appears twice"),
        ("c.yaml", HEAD + "null: 1\n", "the file has the key None; keys must be text"),
        ("c.json", '{"a": ' + "9" * 5000 + "}", "has 5,000 digits; allowed are 40"),
        ("c.yaml", "a: " + "9" * 5000, "cannot be read as int"),
        (
            "c.json",
            '{"data": "a\\u0000b"}',
            "data has the text 'a.*b'; text must not contain NUL or half of a surrogate pair",
        ),
        ("c.json", '{"data": "\\ud800"}', "text must not contain NUL or half of a surrogate pair"),
        (
            "c.json",
            '{"a": 1, // no\n' + '"b": 2,\n' * 20_000,
            "too large: YAML and JSON5 files may have 100,000 characters; write it as plain JSON",
        ),
        ("c.yaml", "# comment\n" * 20_000, "too large: YAML and JSON5 files may have 100,000 characters"),
        ("c.json", " " * 4_000_001, "more than 4,000,000 bytes"),
        ("c\n.json", "{}", r"c\\n\.json: 3 faults"),
    ],
)
def test_what_no_configuration_can_hold_is_told(folder: Path, name: str, text: str, reason: str) -> None:
    outcome = tried(Case(name, text.encode()), folder)
    assert outcome.kind == "refused"
    assert outcome.seconds < 5
    (folder / name).write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        load_config(folder / name)


def test_files_with_a_mark_of_windows_and_many_keys_are_read(folder: Path) -> None:
    (folder / "c.json").write_text("\ufeff" + json.dumps(TINY | {"model_options": {f"k{n}": n for n in range(50_000)}}))
    begun = time.perf_counter()
    assert load_config(folder / "c.json").model_options["k7"] == 7
    assert time.perf_counter() - begun < 5


def test_values_that_yaml_shares_are_not_shared(folder: Path) -> None:
    (folder / "c.yaml").write_text(HEAD + "model_options: {a: &a {x: 1}, b: *a, 3: 4}\n")
    options = load_config(folder / "c.yaml", ["model_options.a.x=2"]).model_options
    assert options == {"a": {"x": 2}, "b": {"x": 1}, "3": 4}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("bootstrapNAS.search=null", "bootstrapNAS.search is None: must be a mapping"),
        ("bootstrapNAS.search=[]", r"bootstrapNAS.search is \[\]: must be a mapping"),
        (f"model_options={DEEP}", "is nested too deep"),
        (f"{'.'.join('a' * 2000)}=1", "is nested too deep"),
        ("input_info.sample_size=[2147483648]", r"sample_size\[0\] is 2147483648: must be less than or equal"),
        ("input_info.sample_size=[65536, 65536]", "an input of 4.3e.9 entries is too large"),
        ("recipe.seed=9223372036854775808", "must be less than or equal to 9223372036854775807"),
        ("stages=[{'epochs': 1e30}]", "stages is .*: must be a valid tuple"),
        ("input_info.range=[0, 1e39]", "must lie between -3.4.*e.38 and 3.4"),
        ("input_info.keyword=a\nb", r"keyword is 'a\\nb': must be a name of letters"),
        ('input_info.dynamic={"2": "a b"}', "dynamic.2 is 'a b': must be a name of letters"),
        ("model_options.a=NaN", "model_options is .*: must have only finite numbers"),
        ("multiprocessing_distributed=3", "multiprocessing_distributed is 3: must be true or false"),
        ("input_info.filler=twos", "filler is 'twos': must be 'ones', 'zeros' or 'random'"),
        ("bootstrapNAS.training.elasticity.depth.mode=nonsense", "mode is 'nonsense': must be 'manual' or 'auto'"),
        (
            "bootstrapNAS.training.elasticity.width.filter_importance=L3",
            "filter_importance is 'L3': must be 'L1', 'L2'",
        ),
        ("bootstrapNAS.training.elasticity.width.add_dynamic_inputs=3", "must be a list of names"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(folder: Path, change: str, reason: str) -> None:
    case = Case("c.json", json.dumps(TINY).encode(), (change,))
    outcome, on_terminal = tried(case, folder), tried(case, folder, command_line)
    assert (outcome.kind, on_terminal.kind) == ("refused", "accepted")
    (folder / "c.json").write_bytes(case.content)
    with pytest.raises(ConfigurationError, match=reason):
        load_config(folder / "c.json", [change])


def test_other_keys_below_one_that_is_null_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"bootstrapNAS.search is None, which has no keys"):
        with_changes({}, ["bootstrapNAS.search=null", "bootstrapNAS.search.num_evals=4"])


@pytest.mark.parametrize("options", [{"name": 1}, {"weights": 2}, {"folder": 3}, {"dataset": 4}, {"place": 5}])
def test_options_may_have_the_names_of_parameters_of_bnas(folder: Path, options: dict[str, Any]) -> None:
    case = Case("c.json", json.dumps(TINY | {"model_options": options, "data_options": options}).encode())
    assert tried(case, folder, built).kind == "accepted"
    images = TINY | {"data": "images.npz", "data_options": options}
    assert tried(Case("c.json", json.dumps(images).encode()), folder).good


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no file .*scores.json"),
        ("", "is neither safetensors nor JSON"),
        ("[" * 50_000, "is neither safetensors nor JSON"),
        ('{"conv": [1, "a"]}', "is neither safetensors nor JSON"),
        ('{"conv": [1, NaN]}', "has scores of conv that are not finite"),
        (f'{{"conv": [{10**400}]}}', "is neither safetensors nor JSON"),
    ],
)
def test_scores_that_cannot_be_read_are_told_before_a_training(folder: Path, text: str | None, reason: str) -> None:
    external = {"filter_importance": "external", "external_importance_path": "scores.json"}
    (folder / "c.json").write_text(json.dumps(TINY | {"elasticity": external}))
    (folder / "scores.json").write_text('{"conv": [1, 2, 3, 4, 5, 6, 7, 8]}')
    assert job_of(load_config(folder / "c.json"), folder)
    (folder / "scores.json").unlink()
    if text is not None:
        (folder / "scores.json").write_text(text)
    with pytest.raises(ElasticityError, match=reason):
        job_of(load_config(folder / "c.json"), folder)


def test_a_limit_of_time_ends_what_lasts() -> None:
    begun = time.perf_counter()
    with pytest.raises(configurations.Hang), at_most(0.1):
        time.sleep(20)
    assert time.perf_counter() - begun < 5
