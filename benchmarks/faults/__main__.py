"""Break small searches in every way that a long one breaks, resume them, and check that nothing was lost or run twice.

    python -m benchmarks.faults [--only kill disk] [--list] [--seed 0] [--data DIR --encoder DIR] [--out FILE]
    make faults [DATA=DIR ENCODER=DIR]

Each fault is injected into real searches of about 20 seconds on the embedded corpus. A row of the table shows what is expected,
what was seen, and in how many of how many searches it held. The exit code is 0 only if everything held. The machine should be
idle, or the time limits of some faults may be missed. `--out` also writes the table as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.case import Case
from benchmarks.faults.cases import CASES
from benchmarks.faults.harness import Lab, Omitted, Unmet
from search.report.words import markdown


@dataclass(frozen=True)
class Row:
    """The outcome of a fault's searches."""

    case: Case
    seen: str
    held: int
    seconds: float

    def cells(self) -> list[str]:
        return [self.case.name, self.case.expected, self.seen, f"{self.held}/{self.case.times}", f"{self.seconds:.0f}"]


def main() -> int:
    """Run the chosen faults and print the table."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", nargs="+", default=[], metavar="WORD", help="faults whose names contain one of these words")
    options.add_argument("--list", action="store_true", help="print the faults, and run none")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random moments (default 0)")
    options.add_argument("--times", type=int, metavar="N", help="searches per fault, at most (default: as listed)")
    options.add_argument("--data", type=Path, metavar="DIR", help="the course's files, for the search on real data")
    options.add_argument("--encoder", type=Path, metavar="DIR", help="a pretrained encoder, for the search on real data")
    options.add_argument("--out", type=Path, metavar="FILE", help="write the table here, too")
    given = options.parse_args()
    cases = [case for case in CASES if not given.only or any(word in case.name for word in given.only)]
    if given.times:
        cases = [case.at_most(given.times) for case in cases]
    if given.list:
        print("\n".join(f"{case.times:>3} x {case.name}: {case.expected}" for case in cases))
        return 0
    with tempfile.TemporaryDirectory(prefix="minbert-faults-") as folder:
        rows = list(_rows(cases, Lab(Path(folder), given.seed, given.data, given.encoder)))
    table = markdown([["fault", "expected", "seen", "held", "s"], *(row.cells() for row in rows)])
    print("", *table, sep="\n")
    if given.out:
        given.out.write_text("\n".join(table) + "\n", encoding="utf-8")
    held = all(row.held == row.case.times for row in rows)
    print(f"\n{sum(row.held for row in rows)} of {sum(row.case.times for row in rows)} searches held.")
    return 0 if held and rows else 1


def _rows(cases: list[Case], lab: Lab) -> Iterator[Row]:
    for number, case in enumerate(cases, start=1):
        began, held, seen = time.monotonic(), 0, ""
        for _ in range(case.times):
            search = lab.search(case.space)
            try:
                words = case.run(search, lab)
                held, seen = held + 1, seen or words
            except Omitted as reason:
                case, seen = case.at_most(0), f"omitted: {reason}"
            except Unmet as fault:
                seen = str(fault).splitlines()[0]
                print(f"\n--- {case.name}: {fault}\n", file=sys.stderr, flush=True)
            finally:
                search.remove()
        row = Row(case, seen, held, time.monotonic() - began)
        print(f"[{number}/{len(cases)}] {' | '.join(row.cells())}", flush=True)
        yield row


if __name__ == "__main__":
    sys.exit(main())
