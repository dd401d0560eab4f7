"""The storage of a search whose nodes share no disk: files behind a URI that every node reaches (`--storage`).

    runs/NAME on the driver's disk        URI/NAME-ID                        a scratch folder on the trial's node
    trials/007/config.yaml            ->  trials/007/config.yaml         ->  config.yaml, when the trial starts
                                          state/0001-000123.jsonl, .pt   <-  each snapshot, after its records
                                          state/…, the newest            ->  state/snapshot.pt, when it continues elsewhere
    best/, of the best few            <-  best/3                         <-  each evaluation that is the trial's best
    alive  log.txt  metrics.jsonl     <-  Ray (board.py)                 <-  twice per second; `stop` goes the other way
    the files that trials read        ->  URI/inputs/SHA                 ->  the node's cache, once per node (inputs.py)

The study, its journal and all that `--status`, `--resume` and `analysis` read are in runs/NAME, which only the driver needs. A
worker knows only the URI. It trains in its scratch folder as on a shared disk (study/away.py), and the driver makes its
own folder of the trial look as if the worker had written there (study/mirror.py).

0001-000123 is a snapshot of the trial's first process with 123 records. The newest counts. Its records arrive first, so whoever
finds the snapshot finds them: the driver reads only these. The snapshot itself keeps its checksums and its config's identity,
which the worker that resumes from it checks. A reader sees a whole file or none: where a system can move a file, it is written
under another name and moved; on an object store, an upload appears when it is complete.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from minbert_core.files import NO_SPACE, replaced

OBJECT_STORES = ("s3", "gcs", "abfs")  # pyarrow's names of systems on which an upload appears as a whole
WAITS = (1.0, 4.0, 15.0, 40.0)  # pyarrow's own tries, within a call, take some seconds more
T = TypeVar("T")


class StorageFault(OSError):
    """A storage that cannot be read or written. The message names its URI and the reason."""


@dataclass(frozen=True)
class Storage:
    """A folder behind a URI. Names of files in it have slashes. It pickles as two texts; each process opens it for itself.

    Its methods raise FileNotFoundError for what is not there, and otherwise StorageFault.
    """

    uri: str
    folder: str = ""
    waits: tuple[float, ...] = ()  # seconds before each further try, if the storage is at fault

    def __truediv__(self, name: str) -> Storage:
        return replace(self, folder=f"{self.folder}/{name}" if self.folder else name)

    def patient(self) -> Storage:
        """Return the same folder, whose methods try for about a minute."""
        return replace(self, waits=WAITS)

    def __str__(self) -> str:
        base, query, options = self.uri.partition("?")
        return f"{base.rstrip('/')}/{self.folder}".rstrip("/") + query + options

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        self._do(lambda system, path: _replace(system, path, lambda draft: _write(system, draft, content)), name, writes=True)

    def read(self, name: str) -> bytes:
        return self._do(lambda system, path: _read(system, path), name)

    def put(self, source: Path, name: str) -> None:
        """Write a copy of a file, or of each file of a folder."""
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                if path.is_file():
                    self.put(path, f"{name}/{path.relative_to(source)}")
            return
        source.stat()
        self._do(lambda system, path: _replace(system, path, lambda draft: _upload(source, system, draft)), name, writes=True)

    def get(self, name: str, target: Path) -> None:
        """Replace `target` by a copy of a file, or of a folder and all that is in it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as draft:
            self._do(lambda system, path: _download(system, path, draft), name)

    def names(self, folder: str) -> list[str]:
        """List the names in a folder ("": this one), sorted; none if there is no such folder."""
        return self._do(_names, folder)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder ("": this one) and all that is in it, if it is there."""
        self._do(_delete, name)

    def _do(self, act: Callable[[Any, str], T], name: str, writes: bool = False) -> T:
        for seconds in self.waits:
            with contextlib.suppress(StorageFault):
                return self._try(act, name, writes)
            time.sleep(seconds)
        return self._try(act, name, writes)

    def _try(self, act: Callable[[Any, str], T], name: str, writes: bool) -> T:
        import pyarrow as pa

        try:
            system, base = _opened(self.uri)
            return act(system, "/".join(filter(None, (base, self.folder, name))))
        except (OSError, pa.ArrowException) as error:
            if not writes and (isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in NO_SPACE):
                raise  # of a copy to this machine, it is this one's disk that is full
            raise StorageFault(f"The storage at {self.uri} is at fault: {reason_of(error)}.") from error


def reason_of(error: Exception) -> str:
    """Return the reason of a fault in one line, without the page that some of pyarrow's systems add."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]


@lru_cache
def _opened(uri: str) -> tuple[Any, str]:
    """Open the system behind a URI, once per process: on S3 this asks for the bucket's region."""
    from pyarrow.fs import FileSystem

    system, base = FileSystem.from_uri(uri)
    return system, base.rstrip("/")


def _replace(system: Any, path: str, write: Callable[[str], None]) -> None:
    if system.type_name in OBJECT_STORES:
        write(path)
        return
    folder, _, name = path.rpartition("/")
    system.create_dir(folder, recursive=True)
    draft = f"{folder}/.{name}.{secrets.token_hex(4)}"
    try:
        write(draft)
        system.move(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.delete_file(draft)
        raise


def _write(system: Any, path: str, content: bytes) -> None:
    with system.open_output_stream(path) as file:
        file.write(content)


def _read(system: Any, path: str) -> bytes:
    with system.open_input_stream(path) as file:
        content: bytes = file.read()
    return content


def _upload(source: Path, system: Any, path: str) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    copy_files(str(source), path, source_filesystem=LocalFileSystem(), destination_filesystem=system)


def _download(system: Any, path: str, target: Path) -> None:
    from pyarrow.fs import FileType, LocalFileSystem, copy_files

    if system.get_file_info(path).type == FileType.Directory:
        target.mkdir(exist_ok=True)  # a try before this one may have made it
    copy_files(path, str(target), source_filesystem=system, destination_filesystem=LocalFileSystem())


def _names(system: Any, path: str) -> list[str]:
    from pyarrow.fs import FileSelector

    infos = system.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if not info.base_name.startswith("."))


def _delete(system: Any, path: str) -> None:
    from pyarrow.fs import FileType

    kind = system.get_file_info(path).type
    if kind == FileType.Directory:
        system.delete_dir(path)
    elif kind == FileType.File:
        system.delete_file(path)
