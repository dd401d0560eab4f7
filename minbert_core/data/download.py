"""The command that fetches the course's public files, and cuts the public Quora file where the course's own is not at hand.

    python -m minbert_core.data.corpus download --to data/
    python -m minbert_core.data.corpus download --to data/ --cut-quora

A file appears under its name only when all of it has come and our own reader has read it; one that is there and can be read
stays as it is. So the command may be broken off and given again, and checks what was copied by hand.

Exit codes are those of minbert_core/commands.py: 3 also without a network.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import shlex
import tempfile
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

SOURCE = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/main/data/"
PUBLISHED = {  # what lies there, and its rows, those that training leaves out included: counted, 2026-11; Quora reported
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
TIMEOUT_SECONDS = 30  # without a byte
STAYS = "A file that is there and can be read stays: delete it to fetch it again."
RETRY = "Nothing of it was kept: give the command again."

PARA = TASKS["para"]
ORIGINAL = "quora-dev-original.csv"  # what --cut-quora has cut
CUT_SEED = 0
CUT_SHARES = {"train": 0.70, "dev": 0.15, "test": 0.15}


class _NotThere(Refused):
    """The source answers, but has no such file: others it may have."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    return run_command(
        _parser(), arguments, _main, writes="to", interrupted="Interrupted. What is there is whole; the same command goes on."
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
        description="The course's corpora as files in a folder.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "fetch the course's public files (SST, CFIMDB, STS, Quora's dev; 9 MB)"
    command = commands.add_parser(
        "download",
        help=about,
        usage=f"{start} [options]",
        description=f"{about[0].upper()}{about[1:]}.\n{STAYS}",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--to", type=Path, default=Path("data"), metavar="DIR", help="folder for the files, made if need be (default data/)"
    )
    command.add_argument(
        "--from", dest="source", default=SOURCE, metavar="URL", help="default: the course's repository on GitHub"
    )
    command.add_argument(
        "--cut-quora",
        action="store_true",
        help="cut the public quora-dev.csv into train (70 %%), dev and test (15 %% each), if the course's own are not at hand",
    )
    return parser


def _check(folder: Path, source: str) -> None:
    address = urlsplit(source)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"--from must be an address that begins with https:// or http://. Got '{source}'.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to must be a folder. {folder} is a file.")


# -------------------------------------------------------------------------------------------------------------- fetching


def download(folder: Path, source: str = SOURCE) -> None:
    """Fetch each published file that is not there or cannot be read, a line of output each.

    Raises Refused, at once where the next file would fare no better; OSError where `folder` cannot be written.
    """
    absent = []
    for number, (name, expected) in enumerate(PUBLISHED.items(), start=1):
        print(f"[{number:2}/{len(PUBLISHED)}] {name}: ", end="", flush=True)
        try:
            print(_fetch_missing(folder, source, name, expected))
        except _NotThere as error:
            print("not there")
            absent.append(str(error))
        except BaseException:
            print("not fetched")
            raise
    if absent:
        raise Refused("\n".join([*absent, "Give another source with --from, or copy these by hand."]))


def _fetch_missing(folder: Path, source: str, name: str, expected: int) -> str:
    """Fetch a file unless it is there already; what has been done, in words."""
    path, before = folder / name, ""
    if path.exists():
        try:
            rows = num_rows(path)
        except CorpusError as error:
            before = f"fetched again, it could not be read ({str(error).splitlines()[0]}); "
        else:
            return f"there already, {_compared(rows, expected)}"
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as drafts:  # beside its place: a rename is atomic
        url = f"{source.rstrip('/')}/{name}"
        try:
            body = fetch(url)
        except ConnectionError as error:
            raise Refused(_by_hand(folder, source, str(error))) from None
        draft = Path(drafts) / name
        draft.write_bytes(body)
        try:
            rows = num_rows(draft)
        except CorpusError as error:
            raise Refused(f"{url} is not the course's file: {error}") from None
        os.replace(draft, path)
    return f"{before}{len(body) / 1e6:.1f} MB, {_compared(rows, expected)}"


def _compared(rows: int, expected: int) -> str:
    return f"{rows:,} rows" + (f" (the course's file has {expected:,})" if rows != expected else "")


def fetch(url: str) -> bytes:
    """All that lies at `url`.

    Raises ConnectionError where nobody answers; Refused where what comes is cut short, a web page or an HTTP error.
    """
    try:
        with urlopen(Request(url, headers={"User-Agent": "minbert-search"}), timeout=TIMEOUT_SECONDS) as answer:
            body: bytes = answer.read()
    except HTTPError as error:
        error.close()
        kind = _NotThere if error.code in (404, 410) else Refused
        raise kind(f"{url} answers {error.code} {error.reason}.") from None
    except IncompleteRead as error:
        came = len(error.partial)
        of = f" of {came + error.expected:,}" if error.expected is not None else ""
        raise Refused(f"{url} broke off after {came:,}{of} bytes. {RETRY}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)  # a URLError wraps what happened
        raise ConnectionError(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__) from None
    if body.lstrip()[:1] == b"<":
        raise Refused(
            f"{url} answers with a web page, not with the file: a login page of this network or its proxy, it seems. "
            "Open the address in a browser, log in, and give the command again."
        )
    if not body.endswith(b"\n"):  # where the server names no length, that is how a cut shows
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
        f"Cannot reach {source} ({reason}). Behind a proxy, set HTTPS_PROXY; in a closed network, fetch these files on another "
        f"machine, copy them into {folder} and give the command again, which then checks them: {missing}."
    )


# ----------------------------------------------------------------------------------------------------------------- Quora


def cut_quora(folder: Path) -> None:
    """Cut the public quora-dev.csv into the course's three files, the test without labels; keep it as quora-dev-original.csv.

    A row's part follows from its id, so a second call, or one after a call that was broken off, comes to the same files.
    Raises CorpusError (no such file, or a faulty one) or Refused (other Quora files are there).
    """
    original, dev = folder / ORIGINAL, folder / PARA.files["dev"]
    source = original if original.exists() else dev
    read_split(folder, replace(PARA, files={"dev": source.name}), "dev")  # raises what is wrong with it
    whole = source.read_bytes()
    parts = {folder / PARA.files[split]: text.encode() for split, text in _cut(whole.decode("utf-8-sig")).items()}
    for path, content in parts.items():
        if path.exists() and path.read_bytes() not in ([content, whole] if path == dev else [content]):
            raise Refused(
                f"--cut-quora would replace {path}, which is not of its making. Nothing was changed: move the file away if the "
                "cut is what you want."
            )
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as drafts:
        # The original first and dev last: wherever this breaks off, the whole file is there under one of its two names.
        for path, content in {original: whole, **parts}.items():
            draft = Path(drafts) / path.name
            draft.write_bytes(content)
            if path != original:
                print(f"        {path.name}: cut, {num_rows(draft):,} rows")
            os.replace(draft, path)


def _cut(text: str) -> dict[str, str]:
    """The files' contents by split: test and train, then dev; each keeps the order of the rows."""
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
    """What the Quora files in `folder` are, for the end of the output."""
    original, dev = folder / ORIGINAL, folder / PARA.files["dev"]
    missing = [name for name in PARA.files.values() if not (folder / name).exists()]
    if missing:
        return (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not published there: the course gives them to its "
            f"students in an archive of its own. Copy them from it into {folder}. Until then search without that task "
            "(--set 'train_on=[sst, sts]'), or give this command again with --cut-quora: it cuts the public quora-dev.csv into "
            "train, dev and test under the course's names. Numbers on that cut are not the papers'."
        )
    if original.exists() and dev.read_bytes() != original.read_bytes():
        return (
            f"The Quora files are a cut of the public quora-dev.csv, which is kept as {ORIGINAL}: numbers on them are not the "
            "papers', which trained on ten times as many pairs and measured on all of quora-dev.csv."
        )
    return "All of the course's files are there."


if __name__ == "__main__":
    raise SystemExit(main())
