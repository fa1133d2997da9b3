"""From the command line to the steps of a run, in one process or in several processes of torchrun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from bnas.config.configuration import Configuration
    from bnas.run.folder import RunFolder
    from bnas.run.job import Watch
    from bnas.run.steps import Steps

# Several processes of torchrun: process 0 runs the command, and the others assist.


@contextmanager
def led(make: Callable[[], Steps]) -> Iterator[None]:
    """Inside, only process 0 continues; the others follow its orders, with the steps from `make`, and end here."""
    from bnas.run import team
    from bnas.runtime import ParallelError

    with team.gathered() as store:
        if not team.assists():
            with team.leading(store):
                yield
            return
        from bnas.run.assistant import Assistant

        try:
            team.assist(lambda: Assistant(make()), store)
        except (ParallelError, KeyboardInterrupt):  # process 0 reports the error
            raise SystemExit(1) from None
        raise SystemExit


@contextmanager
def begun(
    config: Path,
    output: Path | None,
    changes: list[str] | None,
    watch: Watch,
    *,
    resume: bool,
    overwrite: bool,
    trust: bool,
    prune: Mapping[str, Any] | None = None,
) -> Iterator[Steps]:
    """Yield the steps of a run, from a configuration file and options; its folder is locked inside."""
    from bnas.run.files.lock import kept
    from bnas.run.runner import begin

    with led(lambda: _helping(config, output, changes, trust)):
        configuration, folder = _configured(config, output, changes, trust)
        with kept(folder):
            said: Any = {"file": config, "resume": resume, "overwrite": overwrite, "prune": prune}
            with options.unchanged():
                steps = begin(configuration, config.parent, folder, watch, **said)
            yield steps


def _configured(
    config: Path, output: Path | None, changes: list[str] | None, trust: bool
) -> tuple[Configuration, Path]:
    """Return the configuration, and the folder of its run."""
    from bnas.config.file import load_config
    from bnas.run.files.mark import OutputError
    from bnas.run.files.trust import admit

    configuration = load_config(config, changes or [])
    admit(config, configuration, changes or [], trust=trust)
    folder = output or configuration.log_dir
    if folder is None:
        raise OutputError(f"{config} has no log_dir; use --output DIR")
    return configuration, Path(folder)


def _helping(config: Path, output: Path | None, changes: list[str] | None, trust: bool) -> Steps:
    """Return the steps of the same run, for an assisting process."""
    from bnas.run.files.output import Output
    from bnas.run.runner import job_of
    from bnas.run.steps import Steps

    configuration, folder = _configured(config, output, changes, trust)
    return Steps(job_of(configuration, config.parent), Output(folder, resumed=True))


@contextmanager
def opened(run: Path, source: Path | None, changes: list[str] | None, watch: Watch, trust: bool) -> Iterator[RunFolder]:
    """Yield an existing run folder, with the changes of the command line; it is locked inside."""
    from bnas.run.files.lock import kept
    from bnas.run.folder import RunFolder

    said: Any = {"changes": tuple(changes or ()), "trust": trust}
    with led(lambda: RunFolder.open(run, source, **said).steps):
        folder = RunFolder.open(run, source, watch=watch, **said)
        with kept(run):
            yield folder
