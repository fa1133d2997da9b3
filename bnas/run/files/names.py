"""Names of the files in a run folder, which all modules take from here."""

from __future__ import annotations

MARK = "run.json"
"""File that identifies a run folder; a user's own folder may well have a ``config.json``."""
CONFIG = "config.json"
"""The configuration of the run."""
SOURCE = "source.txt"
"""The folder to which file names in the configuration are relative."""
ENVIRONMENT, ARCHITECTURE, DATA = "environment.json", "architecture.json", "data.json"
"""Descriptions of the processes, of the layers and of the data, so that a report needs neither model nor data."""
HISTORY = "training/history.json"
"""The epochs of the training."""
SEARCH = "search.json"
"""Objectives, constraints and other settings of the search."""
EVALUATIONS, EVALUATIONS_CSV = "evaluations.jsonl", "evaluations.csv"
"""The evaluations of the search: the log, which grows line by line, and a table."""
FRONT, WINNERS = "pareto.json", "winners.json"
"""The Pareto front, and the sub-networks that the search chose."""
TUNING = "tuning.json"
"""The fine-tuned winners, how they are fine-tuned, and in the end how accurate they became."""
RESULTS = "report.json"
"""The measurements of the original and the winners."""

# Groups of files and folders, by the step that writes them.

FOUND = (
    SEARCH, WINNERS, FRONT, EVALUATIONS_CSV, EVALUATIONS, "latency.json", "latencies", "search", "plan/search.json",
)  # fmt: skip
"""What a search writes."""
TUNED = (TUNING, "tuning", "plan/tune.json")
"""What a fine-tuning writes."""
DELIVERED = (RESULTS, "report.html", "report", "subnets")
"""What an export and a report write."""
REPORT = "report"
"""Prefix of the files that a process may write without holding the lock of the folder."""
SCALARS = ("training/tensorboard/events.out.tfevents.*", "search/tensorboard/events.out.tfevents.*")
"""Files of TensorBoard, which the list of files does not name."""
GROWING = (EVALUATIONS,)
"""Files that grow line by line; each line has its own checksum."""
