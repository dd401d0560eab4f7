"""SIGKILL of the driver: at random moments, within the resume too, before its writes, and under other kinds of search."""

from __future__ import annotations

import signal
import time

from benchmarks.faults.case import Case
from benchmarks.faults.harness import NAME, ONE_SLOT, SPACE, Lab, Omitted, Search, check_all, check_mlflow, check_whole, require

DIED = 137  # the exit code of an injected death
START = ("--space", f"{NAME}.yaml", *ONE_SLOT)
TOP_K = SPACE.replace("rungs: [1, 3, 9]", "rungs: [1, 3, 9]\ntrial_scheduler: {kind: top_k, k: 2}")
PROMOTION = SPACE.replace("rungs: [1, 3, 9]", "rungs: [1, 3, 9]\ntrial_scheduler: promotion")
FREEZE_THAW = SPACE.replace("rungs: [1, 3, 9]", "rungs: [1, 3, 9]\ntrial_scheduler: freeze_thaw")
REAL = (
    SPACE.replace("  data: toy\n  encoder: tiny\n", "")
    .replace("examples: 6000", "examples: 1500")
    .replace("3e-4, 1e-2", "1e-5, 2e-4")
)
PRETRAINED = SPACE.replace("  optimizer:", "  stages: [{kind: mlm, texts: [sst], epochs: 2, seed: 7}, multitask]\n  optimizer:")


def killed_in_training(search: Search, lab: Lab) -> str:
    """Kill the driver at a random moment of the training."""
    _train_and_kill(search, lab, 0.9)
    return _resumed(search, lab)


def killed_at_the_start(search: Search, lab: Lab) -> str:
    """Kill the driver at a random moment of its first seconds."""
    search.start(*START)
    _wait(search, lab.random.uniform(0, 12))
    _kill(search)
    _repeat_if_nothing_began(search)
    return _resumed(search, lab)


def killed_twice(search: Search, lab: Lab) -> str:
    """Kill the driver in training, and the resumed one again, at random moments."""
    _train_and_kill(search, lab, 0.4)
    search.start("--resume", NAME)
    _wait(search, lab.random.uniform(0, 0.4 * lab.seconds[search.space]))
    _kill(search)
    return _resumed(search, lab)


def killed_before_a_write(search: Search, lab: Lab) -> str:
    """Let the driver die before a random one of its writes."""
    writes = _count_writes(lab)
    number = lab.random.randint(1, writes)
    search.start(*START, fault={"kind": "write", "write": number, "folder": str(search.folder)})
    if search.end() == 0:  # the number of writes differs a little
        return _checked(search, lab)
    require(search.code == DIED, f"the driver ended with {search.code} at write {number}")
    _repeat_if_nothing_began(search)
    return _resumed(search, lab)


def killed_before_a_write_of_the_resume(search: Search, lab: Lab) -> str:
    """Kill the driver in training, and let the resumed one die before a random one of its first writes."""
    _train_and_kill(search, lab, 0.4)
    number = lab.random.randint(1, 40)
    search.start("--resume", NAME, fault={"kind": "write", "write": number, "folder": str(search.folder)})
    search.end()
    return _resumed(search, lab)


def killed_with_two_slots(search: Search, lab: Lab) -> str:
    """Kill the driver while two trials run. The order of arrival decides then, so only wholeness can be checked."""
    search.start("--space", f"{NAME}.yaml")
    search.until(lambda: len(search.workers()) == 2 and search.trains(), "training")
    _wait(search, lab.random.uniform(0, 8))
    _kill(search)
    return _resumed_whole(search)


def killed_with_frozen_trials(search: Search, lab: Lab) -> str:
    """Kill the driver under freeze-thaw. It chooses by seconds, so two runs differ, and only wholeness can be checked."""
    search.start(*START)
    search.until(search.trains, "training")
    _wait(search, lab.random.uniform(0, 30))
    _kill(search)
    return _resumed_whole(search)


def killed_out_of_time(search: Search, lab: Lab) -> str:
    """Kill a search with --hours, and resume it first with too little time, then without a limit."""
    lab.reference(search.space)
    search.start(*START, "--hours", "1")
    search.until(search.trains, "training")
    _wait(search, lab.random.uniform(0, 5))
    _kill(search)
    search.resume("--hours", "0.002")
    return _resumed(search, lab)


def killed_three_times_on_real_data(search: Search, lab: Lab) -> str:
    """Kill a search with a pretrained encoder on the real data, and its next two resumes, and compare it with a whole one."""
    if lab.data is None or lab.encoder is None:
        raise Omitted("it needs --data and --encoder")
    real = ("--data", str(lab.data.absolute()), "--encoder", str(lab.encoder.absolute()))
    reference = lab.reference(search.space, *real)
    pause = lab.seconds[search.space] / 4
    search.start(*START, *real)
    for _ in range(3):
        search.until(search.trains, "training")
        _wait(search, pause)
        _kill(search)
        search.start("--resume", NAME)
    require(search.end(1800) == 0, f"the last --resume ended with {search.code}:\n{search.text[-1500:]}")
    return f"{_checked(search, lab)}; {len(reference)} trials, {search.retrained()} records made again"


def _train_and_kill(search: Search, lab: Lab, share: float) -> None:
    """Start the search, and kill its driver at a random moment of the first `share` of its training, counted in records."""
    moment = lab.random.uniform(0, share) * sum(len(trial.records) for trial in lab.reference(search.space))
    search.start(*START)
    search.until(lambda: search.trains() is not None and search.num_records() >= moment, "training")
    _wait(search, lab.random.uniform(0, 0.2))
    _kill(search)


def _kill(search: Search) -> None:
    """Kill the driver, and require that it had not ended before, or nothing would be tested."""
    search.kill()
    require(search.end() == -signal.SIGKILL, f"the driver had ended with {search.code} before it was killed")


def _repeat_if_nothing_began(search: Search) -> None:
    """Type the command again if no trial has begun: there is nothing to resume then."""
    if not any(search.folder.glob("trials/*")):
        search.start(*START)
        require(search.end() == 0, f"the command, repeated, ended with {search.code}:\n{search.text[-1500:]}")


def _wait(search: Search, seconds: float) -> None:
    """Wait, but not beyond the end of the command."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and search.running():
        time.sleep(0.05)


def _count_writes(lab: Lab) -> int:
    """Count the writes of a whole search's driver, once."""
    if not lab.num_writes:
        whole = lab.search()
        whole.start(*START, fault={"kind": "write", "write": 0, "folder": str(whole.folder)})
        require(whole.end() == 0, f"the search that counts writes ended with {whole.code}:\n{whole.text[-1500:]}")
        lab.num_writes = int((whole.marks / "writes").read_text())
        whole.remove()
    return lab.num_writes


def _resumed(search: Search, lab: Lab) -> str:
    search.end()
    search.resume()
    return _checked(search, lab)


def _resumed_whole(search: Search) -> str:
    search.resume()
    check_whole(search, 6)
    check_mlflow(search)
    return "whole"


def _checked(search: Search, lab: Lab) -> str:
    check_all(search, lab)
    return "same trials, decisions and figures"


SAME = "resumed; same trials, decisions and figures to the digit as without the kill"
WHOLE = "resumed; whole, nothing twice"
KILLS = [
    Case("driver killed in training", SAME, killed_in_training, times=15),
    Case("driver killed at the start", SAME, killed_at_the_start, times=5),
    Case("driver killed, then again within --resume", SAME, killed_twice, times=5),
    Case("driver dies before one of its writes", SAME, killed_before_a_write, times=12),
    Case("driver dies before a write of --resume", SAME, killed_before_a_write_of_the_resume, times=8),
    Case("driver killed, two slots", WHOLE, killed_with_two_slots, times=3),
    Case("driver killed under top_k", SAME, killed_in_training, times=2, space=TOP_K),
    Case("driver killed under promotion", SAME, killed_in_training, times=2, space=PROMOTION),
    Case("driver killed under freeze_thaw", WHOLE, killed_with_frozen_trials, times=2, space=FREEZE_THAW),
    Case("driver killed under --hours", SAME, killed_out_of_time, times=2),
    Case("driver killed with pretraining", SAME, killed_in_training, times=2, space=PRETRAINED),
    Case("driver killed three times, real data", SAME, killed_three_times_on_real_data, space=REAL),
]
