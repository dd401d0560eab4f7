"""The console command `minbert`, which pip installs: one word per step of the work, each its own command.

    minbert search --space spaces/quickstart.yaml     is     python -m search.run --space spaces/quickstart.yaml
    minbert test --search quickstart                  is     python -m analysis.best_to_test --search quickstart

The options, the exit codes and the speed of --help are those of the modules, which are run as `python -m` runs them.
"""

from __future__ import annotations

import runpy
import sys

from minbert_core.commands import DONE, WRONG
from minbert_core.words import did_you_mean

COMMANDS = {
    "search": ("search.run", "search a space for the best configuration"),
    "train": ("minbert_core.train", "train one configuration"),
    "predict": ("minbert_core.predict", "let a model answer sentences or a file"),
    "test": ("analysis.best_to_test", "retrain the best and open the test sets"),
    "report": ("analysis.report", "write one page about a search"),
    "spaces": ("search.space", "explain the knobs of a space"),
    "data": ("minbert_core.data.corpus", "download the course's files"),
}
USAGE = "usage: minbert COMMAND [options]"


def main() -> int:
    """Run the command that the first word of the command line names; its own exit code ends the process."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        lines = (f"  {name:8}  {about}" for name, (_, about) in COMMANDS.items())
        print(USAGE, "", *lines, "", "minbert COMMAND --help lists the options of one.", sep="\n")
        return DONE
    if word not in COMMANDS:
        print(f"{USAGE}\nUnknown command '{word}'{did_you_mean(word, COMMANDS)}", file=sys.stderr)
        return WRONG
    sys.argv = [f"minbert {word}", *rest]
    runpy.run_module(COMMANDS[word][0], run_name="__main__", alter_sys=True)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
