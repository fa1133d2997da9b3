"""Everything that a GPU does differently, measured on one: ``python tests/benchmarks/gpu.py [PART ...] [--minutes M]``.

- ``programs``: programs, extraction, recalibration and evaluation on the GPU against the CPU.
- ``steps``: steps of programs against those of plain models by CUDA events, switching, synchronisations, sandwich
  steps, memory, transfers, optimizers, ``torch.compile``.
- ``cifar``: ResNet-56 on CIFAR-10 in bfloat16: bnas against pruning once and fine-tuning, in the same time.

Tables in Markdown; ``--output`` gets them as JSON after each row. ``--device cpu --small`` runs it on any machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gpu_cifar import cifar
from gpu_clock import Clock
from gpu_programs import programs
from gpu_report import Report, described
from gpu_steps import steps

PARTS = ("programs", "steps", "cifar")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that every line runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="skip what does not fit into so many")
    parser.add_argument("--cifar-minutes", type=float, default=3.5, help="of those, for training on CIFAR-10")
    parser.add_argument("--data", type=Path, default=None, help="folder of CIFAR-10 and the weights of ResNet-56")
    parser.add_argument("--output", type=Path, default=None, help="folder for gpu.json")
    arguments = parser.parse_args()
    chosen = arguments.parts or PARTS
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"{unknown[0]!r} is not a part; there are {', '.join(PARTS)}")
    clock = Clock(torch.device(arguments.device))
    report = Report(arguments.output, 60 * arguments.minutes, described(clock.device))
    report.share = 0.2 if arguments.small else 1.0
    report.say(report.machine)
    later = "cifar" in chosen and arguments.data is not None
    report.reserved = 60 * arguments.cifar_minutes + 15 if later else 0.0
    if "programs" in chosen:
        programs(report, clock, arguments.small)
    if "steps" in chosen:
        steps(report, clock, arguments.small)
    report.reserved = 0.0
    if "cifar" in chosen:
        cifar(report, clock, arguments.data, arguments.cifar_minutes, arguments.small)
    report.say("\n".join(["", *(report.notes or ["nothing failed, nothing was skipped"])]))


if __name__ == "__main__":
    main()
