"""Write a trained run as one safetensors file: the weights, and all that is needed to use them.

It is read without pickle; avfast.evaluate, avfast.localize and avfast.load take it in place of a folder.
Commands to start from:

    python -m avfast.export runs/first
    python -m avfast.export runs/first --out model.safetensors
    python -m avfast.localize model.safetensors video.mp4 --out found
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from avfast import portable
from avfast.cli import run
from avfast.errors import InputError
from avfast.runs import read_best


@dataclass
class Options:
    run: tyro.conf.Positional[Path]
    """Folder of a run: the --out of avfast.train."""
    out: Path | None = None
    """The file, whose name ends in .safetensors. Default: model.safetensors in the run's folder."""


def main(options: Options) -> None:
    """Export one run."""
    out = options.out or options.run / f"model{portable.SUFFIX}"
    if out.suffix != portable.SUFFIX:
        raise InputError(f"--out {out}: give it a name that ends in {portable.SUFFIX}")
    state = read_best(options.run)
    portable.save(out, state)
    print(f"{out}: {len(state['classes'])} classes, as after step {state['step']}")


if __name__ == "__main__":
    run(main, Options)
