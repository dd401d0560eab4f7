"""The download, against a server of one's own: what comes is whole and read, or not there; every fault is a sentence."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from analysis.test_split import load_test_split
from minbert_core.commands import DONE, INTERRUPTED, REFUSED, WRONG
from minbert_core.data import download as download_module
from minbert_core.data import toy
from minbert_core.data.corpus import read_split
from minbert_core.data.download import CUT_SHARES, ORIGINAL, PUBLISHED, main
from minbert_core.data.tasks import TASKS

PARA = TASKS["para"]
ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exactly the files that the course publishes, small ones."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "SIZES", {"train": 30, "dev": 40, "test": 10})
        toy.write_toy_corpus(folder)
    for path in folder.iterdir():
        if path.name not in PUBLISHED:
            path.unlink()
    assert len(list(folder.iterdir())) == len(PUBLISHED)
    return folder


class Server:
    """Serves a folder on this machine; `odd` maps a file's name to another answer; `asked` are the names asked for."""

    def __init__(self, folder: Path) -> None:
        self.odd: dict[str, Answer] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/data/")
                server.asked.append(name)
                path = folder / name
                if name in server.odd:
                    server.odd[name](self, path.read_bytes())
                elif path.is_file():
                    send(self, path.read_bytes())
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/data/"


def send(handler: BaseHTTPRequestHandler, body: bytes, length: int | None = None, kind: str = "text/plain") -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    server = Server(published)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def run(folder: Path, source: Server | str, *options: str) -> int:
    return main(["download", "--to", str(folder), "--from", source if isinstance(source, str) else source.url, *options])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -------------------------------------------------------------------------------------------------------------- it works


def test_all_published_files_come_to_the_byte_and_each_ones_rows_are_said(
    server: Server, published: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(tmp_path / "new" / "data", server) == DONE
    assert contents(tmp_path / "new" / "data") == contents(published)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "[ 1/10] ids-sst-train.csv: 0.0 MB, 30 rows (the course's file has 8,544)"
    assert [line.split("]")[0] for line in lines[1:11]] == [f"[{n:2}/10" for n in range(1, 11)]


def test_what_the_course_does_not_publish_is_said_in_one_paragraph(server: Server, tmp_path: Path, capsys: Capture) -> None:
    run(tmp_path, server)
    paragraphs = capsys.readouterr().out.split("\n\n")
    assert paragraphs[1].startswith("quora-train.csv and quora-test-student.csv are not published there: the course gives its")
    assert f"Copy the Quora files from it into {tmp_path}." in paragraphs[1]
    assert "--cut-quora" in paragraphs[1]
    assert "Results on that cut are not comparable to the papers'." in paragraphs[1]
    assert f"--data {tmp_path} --dry-run" in paragraphs[2]


def test_what_is_there_stays_and_is_not_asked_for_again(server: Server, tmp_path: Path, capsys: Capture) -> None:
    mine = "\tid\tsentence\tsentiment\n0\tmine\tA film\t3"  # no line end: a user's own, and whole
    (tmp_path / "ids-sst-dev.csv").write_text(mine)
    assert run(tmp_path, server) == DONE
    assert "ids-sst-dev.csv" not in server.asked
    server.asked.clear()
    assert run(tmp_path, server) == DONE
    assert server.asked == []
    assert "ids-sst-dev.csv: exists, 1 rows" in capsys.readouterr().out
    assert (tmp_path / "ids-sst-dev.csv").read_text() == mine


def test_a_file_that_cannot_be_read_is_fetched_again(server: Server, published: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "sts-dev.csv").write_text("<html>")
    assert run(tmp_path, server) == DONE
    assert (tmp_path / "sts-dev.csv").read_bytes() == (published / "sts-dev.csv").read_bytes()
    reason = "downloaded again, because it could not be read (sts-dev.csv:1: column 'id' is missing"
    assert f"sts-dev.csv: {reason}" in capsys.readouterr().out


def test_the_known_rows_are_those_of_the_courses_files(real_data: Path) -> None:
    for name, expected in PUBLISHED.items():
        if name != "quora-dev.csv":  # the one at hand is a part of it
            assert download_module.num_rows(real_data / name) == expected


def test_the_command_reads_as_the_documents_have_it_and_loads_no_torch(server: Server, tmp_path: Path) -> None:
    command = ["minbert_core.data.corpus", "download", "--to", "data", "--from", server.url]
    code = "import runpy, sys; sys.argv[:] = sys.argv[1:]\ntry: runpy.run_module(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules, 'minbert_core.data.corpus' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", code, *command]
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False True\n")
    assert (tmp_path / "data" / "quora-dev.csv").is_file()
    bare = [sys.executable, "-W", "error", "-m", "minbert_core.data.corpus"]
    done = subprocess.run(bare, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "download" in done.stdout


# ---------------------------------------------------------------------------------------------------------------- faults


def refused(folder: Path, source: Server | str, capsys: Capture) -> str:
    """What is said where the files cannot come now; nothing half is left."""
    assert run(folder, source) == REFUSED
    assert not [path for path in folder.iterdir() if path.name not in PUBLISHED]
    return capsys.readouterr().err.strip()


def test_without_network_it_says_which_files_to_copy_where(tmp_path: Path, published: Path, capsys: Capture) -> None:
    shutil.copy(published / "sts-dev.csv", tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: whoever connects is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        said = refused(tmp_path, url, capsys)
    assert said.startswith(f"Cannot reach {url} (Connection refused). Behind a proxy, set HTTPS_PROXY. Without internet, ")
    assert f"copy them into {tmp_path} and repeat the command" in said
    missing = said.split("check them: ")[1].removesuffix(".").split(", ")
    assert missing == [name for name in PUBLISHED if name != "sts-dev.csv"]
    assert len(said.splitlines()) == 1


def test_an_unknown_host_is_said_as_such(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("no_proxy", "*")
    assert "(Name or service not known)" in refused(tmp_path, "https://nowhere.invalid/data/", capsys)


def test_a_file_that_is_not_there_stops_none_of_the_others(server: Server, tmp_path: Path, capsys: Capture) -> None:
    server.odd["ids-sst-dev.csv"] = lambda handler, _: handler.send_error(404)
    said = refused(tmp_path, server, capsys)
    assert said.startswith(f"{server.url}ids-sst-dev.csv answers 404 Not Found.\n")
    assert set(contents(tmp_path)) == set(PUBLISHED) - {"ids-sst-dev.csv"}


def test_another_http_error_is_said_at_once(server: Server, tmp_path: Path, capsys: Capture) -> None:
    server.odd["ids-sst-train.csv"] = lambda handler, _: handler.send_error(503)
    assert refused(tmp_path, server, capsys) == f"{server.url}ids-sst-train.csv answers 503 Service Unavailable."
    assert len(server.asked) == 1


def test_a_transfer_cut_short_leaves_nothing(server: Server, tmp_path: Path, capsys: Capture) -> None:
    server.odd["ids-sst-dev.csv"] = lambda handler, body: send(handler, body[:1000], len(body))
    said = refused(tmp_path, server, capsys)
    assert "ids-sst-dev.csv broke off after 1,000 of " in said
    assert said.endswith(" bytes. The part was not kept. Repeat the command.")
    assert set(contents(tmp_path)) == {"ids-sst-train.csv"}
    del server.odd["ids-sst-dev.csv"]
    assert run(tmp_path, server) == DONE  # and the next call goes on


def test_a_cut_without_a_promised_length_shows_in_the_last_line(server: Server, tmp_path: Path, capsys: Capture) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body[:1001])

    server.odd["ids-sst-train.csv"] = answer
    assert "ids-sst-train.csv broke off in the middle of a line." in refused(tmp_path, server, capsys)
    assert contents(tmp_path) == {}


def test_a_login_page_is_not_taken_for_a_file(server: Server, tmp_path: Path, capsys: Capture) -> None:
    server.odd["ids-sst-train.csv"] = lambda handler, _: send(handler, b"\n<!DOCTYPE html>\n<html></html>\n", kind="text/html")
    assert f"{server.url}ids-sst-train.csv answers with a web page, not with the file" in refused(tmp_path, server, capsys)
    assert contents(tmp_path) == {}


def test_another_file_under_the_name_is_not_taken(server: Server, tmp_path: Path, capsys: Capture) -> None:
    server.odd["ids-sst-train.csv"] = lambda handler, _: send(handler, b"version https://git-lfs.github.com/spec/v1\n")
    said = refused(tmp_path, server, capsys)
    assert f"{server.url}ids-sst-train.csv is not the course's file: ids-sst-train.csv:1: column 'id' is missing" in said
    assert contents(tmp_path) == {}


def test_what_was_written_wrong_is_said_before_anything_is_asked_for(server: Server, tmp_path: Path, capsys: Capture) -> None:
    for source in ("data/", "file:///data/", "https://"):
        assert run(tmp_path / "data", source) == WRONG
        assert "--from must be an address that begins with https:// or http://. Got" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", server) == WRONG
    assert capsys.readouterr().err == f"--to must be a folder. {tmp_path / 'file'} is a file.\n"
    assert server.asked == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(server: Server, tmp_path: Path, capsys: Capture) -> None:
    tmp_path.chmod(0o500)
    assert run(tmp_path, server) == REFUSED
    said = capsys.readouterr().err
    assert said.startswith(f"Cannot write {tmp_path}/")
    assert said.endswith(": Permission denied. Use --to to give a folder that you can write.\n")


def test_a_place_where_no_folder_can_be_is_said(server: Server, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    assert run(tmp_path / "file" / "data", server) == REFUSED
    assert f"Cannot write {tmp_path / 'file' / 'data'}: Not a directory. Use --to " in capsys.readouterr().err
    assert server.asked == []


def test_ctrl_c_leaves_no_half_file(server: Server, tmp_path: Path, capsys: Capture) -> None:
    released = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:1000])
        handler.wfile.flush()
        os.kill(os.getpid(), signal.SIGINT)  # of the process: its main thread waits for the rest
        released.wait(10)

    server.odd["ids-sst-dev.csv"] = answer
    try:
        assert run(tmp_path, server) == INTERRUPTED
    finally:
        released.set()
    assert set(contents(tmp_path)) == {"ids-sst-train.csv"}
    assert capsys.readouterr().err == "Interrupted. All files in the folder are complete. Repeat the command to resume.\n"


# ----------------------------------------------------------------------------------------------------------------- Quora


@pytest.fixture
def cut(published: Path, tmp_path: Path, capsys: Capture) -> Path:
    """A folder with a cut of a Quora file of 200 rows, one with quotes and a spoilt one among them."""
    folder = tmp_path / "cut"
    shutil.copytree(published, folder)
    header, *rows = (folder / "quora-dev.csv").read_text().splitlines(keepends=True)
    rows = [f"{i}\tid{i:03}\t" + row.split("\t", 2)[2] for i, row in enumerate(5 * rows)]
    rows[7] = '7\tid007\t"""Which is it: """"a""""?"""\t"b, ""c"""\t1.0\n'
    rows[150] = '150\tid150\t"""Given a set?"\t\t\n'
    (folder / "quora-dev.csv").write_text(header + "".join(rows))
    assert run(folder, "http://127.0.0.1:9/", "--cut-quora") == DONE  # all is there: the source is not asked
    return folder


def test_the_cut_is_70_15_15_and_every_row_is_in_one_part_as_it_was(cut: Path) -> None:
    shutil.copy(cut / ORIGINAL, cut.parent / "quora-dev.csv")
    whole = read_split(cut.parent, PARA, "dev")
    assert whole.labels is not None
    assert len(whole.ids) == 199
    before = {i: (texts, label) for i, texts, label in zip(whole.ids, whole.texts, whole.labels, strict=True)}
    parts = [read_split(cut, PARA, "train"), read_split(cut, PARA, "dev"), load_test_split(cut, PARA)]
    assert [len(part.ids) + len(part.dropped) for part in parts] == [140, 30, 30] == [200 * s for s in CUT_SHARES.values()]
    ids = [i for part in parts for i in [*part.ids, *(row.id for row in part.dropped)]]
    assert sorted(ids) == sorted([*before, "id150"])
    for part in parts[:2]:
        assert part.labels is not None
        assert all(before[i] == (t, label) for i, t, label in zip(part.ids, part.texts, part.labels, strict=True))
        assert part.ids == sorted(part.ids)  # the file's own order
    assert all(before[i][0] == texts for i, texts in zip(parts[2].ids, parts[2].texts, strict=True) if i != "id150")


def test_the_cuts_test_has_no_labels_and_the_courses_layout(cut: Path) -> None:
    assert load_test_split(cut, PARA).labels is None
    assert (cut / "quora-test-student.csv").read_text().splitlines()[0] == "\tid\tsentence1\tsentence2"
    assert (cut / "quora-train.csv").read_text().splitlines()[0] == "\tid\tsentence1\tsentence2\tis_duplicate"


def test_the_cut_follows_from_the_ids_alone_and_is_not_the_papers_data(cut: Path, tmp_path: Path, capsys: Capture) -> None:
    after = contents(cut)
    assert run(cut, "http://127.0.0.1:9/", "--cut-quora") == DONE
    assert contents(cut) == after
    said = capsys.readouterr().out.split("\n\n")[1]
    assert said.startswith("The Quora files are a cut of the public quora-dev.csv, which is kept as quora-dev-original.csv. ")
    assert "Results on them are not comparable to the papers'" in said
    header, *rows = (cut / ORIGINAL).read_text().splitlines(keepends=True)
    other = tmp_path / "reversed"
    shutil.copytree(cut, other)
    for path in other.glob("quora-*"):
        path.unlink()
    (other / "quora-dev.csv").write_text(header + "".join(reversed(rows)))
    assert run(other, "http://127.0.0.1:9/", "--cut-quora") == DONE
    assert sorted(read_split(other, PARA, "train").ids) == read_split(cut, PARA, "train").ids


@pytest.mark.parametrize("renames", range(4))
def test_a_cut_that_is_broken_off_loses_nothing_and_is_finished_by_the_next_call(
    cut: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    after = contents(cut)
    for path in cut.glob("quora-*"):
        path.unlink()
    (cut / "quora-dev.csv").write_bytes(after[ORIGINAL])
    done = []

    def replace_some(draft: Path, path: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        shutil.move(draft, path)
        done.append(path)

    with monkeypatch.context() as patch:
        patch.setattr("minbert_core.files.os.replace", replace_some)
        assert run(cut, "http://127.0.0.1:9/", "--cut-quora") == INTERRUPTED
    assert set(contents(cut)) <= set(after)
    assert after[ORIGINAL] in contents(cut).values()
    assert run(cut, "http://127.0.0.1:9/", "--cut-quora") == DONE
    assert contents(cut) == after


def test_the_courses_own_quora_files_are_never_replaced_by_a_cut(cut: Path, capsys: Capture) -> None:
    (cut / "quora-train.csv").write_text("\tid\tsentence1\tsentence2\tis_duplicate\n0\ta\tx\ty\t1.0\n")
    before = contents(cut)
    assert run(cut, "http://127.0.0.1:9/", "--cut-quora") == REFUSED
    assert f"--cut-quora would replace {cut / 'quora-train.csv'}, which it has not written." in capsys.readouterr().err
    assert contents(cut) == before


def test_a_folder_with_the_courses_own_files_is_said_to_be_complete(tmp_path: Path, capsys: Capture) -> None:
    toy.write_toy_corpus(tmp_path)
    assert run(tmp_path, "http://127.0.0.1:9/") == DONE
    assert "All files of the course are there." in capsys.readouterr().out
