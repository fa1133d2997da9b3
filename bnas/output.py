"""The folder of a run: refused if it holds one already, unless that is to be resumed or overwritten."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnas.passes.errors import BnasError
from bnas.runtime.files import write_json

CONFIG = "config.json"


class OutputError(BnasError):
    """The output folder cannot be used."""


@dataclass(frozen=True)
class Output:
    """A folder that holds one run; made by `open_output`."""

    folder: Path
    resumed: bool = False
    """Files of an earlier run of the same configuration are there to be reused."""

    def path(self, name: str) -> Path:
        """Where the file `name` goes; its folder exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def open_output(folder: Path, config: Any, *, resume: bool = False, overwrite: bool = False) -> Output:
    """Make `folder` ready for a run of `config` (JSON data), which is written there first.

    Raises:
        OutputError: it holds a run, or other files; or a run of another configuration is to be resumed.
    """
    if resume and overwrite:
        raise OutputError("resume and overwrite exclude each other")
    holds_run = (folder / CONFIG).is_file()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder")
    if holds_run and not (resume or overwrite):
        raise OutputError(f"{folder} holds a run already; say --resume to go on with it or --overwrite to replace it")
    if not holds_run and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds files that are not a run of bnas; give a new folder")
    if resume and holds_run:
        _check_same(folder / CONFIG, config)
    elif holds_run:
        shutil.rmtree(folder)
    write_json(folder / CONFIG, config)
    return Output(folder, resume and holds_run)


def _check_same(path: Path, config: Any) -> None:
    import json

    if json.loads(path.read_text()) != json.loads(json.dumps(config)):
        raise OutputError(f"{path} is of another configuration: resume with that one, or say --overwrite")
