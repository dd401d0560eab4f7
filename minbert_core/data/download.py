"""The command that downloads the course's public files and, if the course's own Quora files are missing, cuts the public one.

    python -m minbert_core.data.corpus download --to data/
    python -m minbert_core.data.corpus download --to data/ --cut-quora

A file appears under its name only after it was downloaded completely and our reader could read it. Existing files that can be
read are kept. So you can interrupt and repeat the command, and it also checks files that you copied by hand.

Exit codes are those of minbert_core/commands.py; without a network the code is 3.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import shlex
from collections.abc import Iterable
from dataclasses import replace
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from minbert_core.commands import DONE, Refused, run_command
from minbert_core.data.corpus import read_every_row, read_split
from minbert_core.data.tables import CorpusError
from minbert_core.data.tasks import TASKS
from minbert_core.files import replaced

SOURCE = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/main/data/"
PUBLISHED = {  # the files there and their rows, including those that training drops: counted 2026-11, Quora as published
    "ids-sst-train.csv": 8544,
    "ids-sst-dev.csv": 1101,
    "ids-sst-test-student.csv": 2210,
    "ids-cfimdb-train.csv": 1707,
    "ids-cfimdb-dev.csv": 245,
    "ids-cfimdb-test-student.csv": 488,
    "sts-train.csv": 6040,
    "sts-dev.csv": 863,
    "sts-test-student.csv": 1725,
    "quora-dev.csv": 20214,
}
TIMEOUT_SECONDS = 30  # without receiving a byte
KEPT = "Existing files that can be read are kept. To download a file again, delete it."
RETRY = "The part was not kept. Repeat the command."

PARA = TASKS["para"]
ORIGINAL = "quora-dev-original.csv"  # the file that --cut-quora has cut
CUT_SEED = 0
CUT_SHARES = {"train": 0.70, "dev": 0.15, "test": 0.15}


class _NotThere(Refused):
    """The source answers, but does not have this file; it may have others."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run_command(
        _parser(),
        arguments,
        _main,
        writes="to",
        interrupted="Interrupted. All files in the folder are complete. Repeat the command to resume.",
    )


def _main(options: argparse.Namespace) -> int:
    if options.command is None:
        _parser().print_help()
        return DONE
    folder = options.to.absolute()
    _check(folder, options.source)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"The course's public files, from {options.source} to {folder}:")
    download(folder, options.source)
    if options.cut_quora:
        cut_quora(folder)
    print(f"\n{_about_quora(folder)}")
    print(f"\nNext: python -m search.run --space spaces/smart.yaml --data {shlex.quote(str(folder))} --dry-run")
    return DONE


def _parser() -> argparse.ArgumentParser:
    start = "python -m minbert_core.data.corpus download"
    examples = f"examples:\n  {start} --to data/\n  {start} --to data/ --cut-quora"
    parser = argparse.ArgumentParser(
        prog="python -m minbert_core.data.corpus",
        description="Download the course's corpora into a folder.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "download the course's public files (SST, CFIMDB, STS, Quora's dev; 9 MB)"
    command = commands.add_parser(
        "download",
        help=about,
        usage=f"{start} [options]",
        description=f"{about[0].upper()}{about[1:]}.\n{KEPT}",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--to",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder for the files; created if it does not exist (default data/)",
    )
    command.add_argument(
        "--from",
        dest="source",
        default=SOURCE,
        metavar="URL",
        help="address of the files (default: the course's repository on GitHub)",
    )
    command.add_argument(
        "--cut-quora",
        action="store_true",
        help="cut the public quora-dev.csv into train (70 %%), dev and test (15 %% each), if you lack the course's Quora files",
    )
    return parser


def _check(folder: Path, source: str) -> None:
    address = urlsplit(source)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"--from must be an address that begins with https:// or http://. Got '{source}'.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to must be a folder. {folder} is a file.")


# ----------------------------------------------------------------------------------------------------------- downloading


def download(folder: Path, source: str = SOURCE) -> None:
    """Download each published file that is missing or cannot be read; print one line per file.

    Raises Refused: at the end if the source lacks files, immediately for faults that the other files would have, too.
    Raises OSError if `folder` cannot be written.
    """
    absent = []
    for number, (name, expected) in enumerate(PUBLISHED.items(), start=1):
        print(f"[{number:2}/{len(PUBLISHED)}] {name}: ", end="", flush=True)
        try:
            print(_fetch_missing(folder, source, name, expected))
        except _NotThere as error:
            print("not available")
            absent.append(str(error))
        except BaseException:
            print("not downloaded")
            raise
    if absent:
        raise Refused("\n".join([*absent, "Give another source with --from, or copy these files by hand."]))


def _fetch_missing(folder: Path, source: str, name: str, expected: int) -> str:
    """Download a file unless it exists and can be read; describe what was done."""
    path, before = folder / name, ""
    if path.exists():
        try:
            rows = num_rows(path)
        except CorpusError as error:
            before = f"downloaded again, because it could not be read ({str(error).splitlines()[0]}); "
        else:
            return f"exists, {_compared(rows, expected)}"
    with replaced(path, many_writers=True) as draft:
        url = f"{source.rstrip('/')}/{name}"
        try:
            body = fetch(url)
        except ConnectionError as error:
            raise Refused(_by_hand(folder, source, str(error))) from None
        draft.write_bytes(body)
        try:
            rows = num_rows(draft)
        except CorpusError as error:
            raise Refused(f"{url} is not the course's file: {error}") from None
    return f"{before}{len(body) / 1e6:.1f} MB, {_compared(rows, expected)}"


def _compared(rows: int, expected: int) -> str:
    return f"{rows:,} rows" + (f" (the course's file has {expected:,})" if rows != expected else "")


def fetch(url: str) -> bytes:
    """Download the file at `url`.

    Raises ConnectionError: no answer.  Raises Refused: an incomplete file, a web page, an HTTP error.
    """
    try:
        with urlopen(Request(url, headers={"User-Agent": "minbert-search"}), timeout=TIMEOUT_SECONDS) as answer:
            body: bytes = answer.read()
    except HTTPError as error:
        error.close()
        kind = _NotThere if error.code in (404, 410) else Refused
        raise kind(f"{url} answers {error.code} {error.reason}.") from None
    except IncompleteRead as error:
        received = len(error.partial)
        total = f" of {received + error.expected:,}" if error.expected is not None else ""
        raise Refused(f"{url} broke off after {received:,}{total} bytes. {RETRY}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)  # a URLError wraps the cause
        raise ConnectionError(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__) from None
    if body.lstrip()[:1] == b"<":
        raise Refused(
            f"{url} answers with a web page, not with the file. It may be a login page of this network or its proxy. "
            "Open the address in a browser, log in, and repeat the command."
        )
    if not body.endswith(b"\n"):  # the only sign of an incomplete file if the server sends no length
        raise Refused(f"{url} broke off in the middle of a line. {RETRY}")
    return body


def num_rows(path: Path) -> int:
    """Rows of one of the course's files, those that training leaves out included.  Raises CorpusError."""
    task, split = next((task, split) for task in TASKS.values() for split in task.files if task.files[split] == path.name)
    if split == "test":
        return len(read_every_row(path, task, split).ids)
    read = read_split(path.parent, task, "train" if split == "train" else "dev")
    return len(read.ids) + len(read.dropped)


def _by_hand(folder: Path, source: str, reason: str) -> str:
    missing = ", ".join(name for name in PUBLISHED if not (folder / name).exists())
    return (
        f"Cannot reach {source} ({reason}). Behind a proxy, set HTTPS_PROXY. Without internet, download these files on another "
        f"machine, copy them into {folder} and repeat the command to check them: {missing}."
    )


# ----------------------------------------------------------------------------------------------------------------- Quora


def cut_quora(folder: Path) -> None:
    """Cut the public quora-dev.csv into the course's three files (test without labels); keep it as quora-dev-original.csv.

    A row's id decides its split, so a second call, or a call after an interrupted one, gives the same files.
    Raises CorpusError: no such file, or an invalid one.  Raises Refused: there are other Quora files.
    """
    original, dev = folder / ORIGINAL, folder / PARA.files["dev"]
    source = original if original.exists() else dev
    read_split(folder, replace(PARA, files={"dev": source.name}), "dev")  # raises CorpusError if it is invalid
    whole = source.read_bytes()
    parts = {folder / PARA.files[split]: text.encode() for split, text in _cut(whole.decode("utf-8-sig")).items()}
    for path, content in parts.items():
        if path.exists() and path.read_bytes() not in ([content, whole] if path == dev else [content]):
            raise Refused(
                f"--cut-quora would replace {path}, which it has not written. Nothing was changed. If you want the cut, "
                "move the file away."
            )
    # The original first and dev last: after an interruption the whole file still exists under one of its two names.
    for path, content in {original: whole, **parts}.items():
        with replaced(path, many_writers=True) as draft:
            draft.write_bytes(content)
            if path != original:
                print(f"        {path.name}: cut, {num_rows(draft):,} rows")


def _cut(text: str) -> dict[str, str]:
    """Return the content of each file by split: test, train, dev. Each keeps the order of the rows."""
    header, *rows = [fields for fields in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if fields]
    identity, label = header.index("id"), header.index(PARA.label_column)
    digests = [hashlib.sha256(f"{CUT_SEED}/{row[identity].lower().strip()}".encode()).digest() for row in rows]
    order = sorted(range(len(rows)), key=digests.__getitem__)
    first, second = round(CUT_SHARES["train"] * len(rows)), round((CUT_SHARES["train"] + CUT_SHARES["dev"]) * len(rows))
    train, dev, test = ([rows[i] for i in sorted(part)] for part in (order[:first], order[first:second], order[second:]))
    unlabelled = [[cell for i, cell in enumerate(row) if i != label] for row in (header, *test)]
    return {"test": _tsv(unlabelled), "train": _tsv([header, *train]), "dev": _tsv([header, *dev])}


def _tsv(rows: Iterable[list[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return file.getvalue()


def _about_quora(folder: Path) -> str:
    """Describe the Quora files in `folder`, for the end of the output."""
    original, dev = folder / ORIGINAL, folder / PARA.files["dev"]
    missing = [name for name in PARA.files.values() if not (folder / name).exists()]
    if missing:
        return (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not published there: the course gives its "
            f"students a separate archive. Copy the Quora files from it into {folder}. Until then, search without that task "
            "(--set 'train_on=[sst, sts]'), or repeat this command with --cut-quora, which cuts the public quora-dev.csv into "
            "train, dev and test under the course's names. Results on that cut are not comparable to the papers'."
        )
    if original.exists() and dev.read_bytes() != original.read_bytes():
        return (
            f"The Quora files are a cut of the public quora-dev.csv, which is kept as {ORIGINAL}. Results on them are not "
            "comparable to the papers', which trained on ten times as many pairs and evaluated on all of quora-dev.csv."
        )
    return "All files of the course are there."


if __name__ == "__main__":
    raise SystemExit(main())
