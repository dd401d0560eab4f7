"""Faults inside a search's processes: workers that die, stop or run out of memory, and Ray's own processes that die."""

from __future__ import annotations

import signal
import time
from functools import partial

from benchmarks.faults.case import Case
from benchmarks.faults.harness import (
    NAME,
    ONE_SLOT,
    Lab,
    Search,
    check_all,
    check_gone,
    check_mlflow,
    check_whole,
    require,
)
from search.study.limits import HELD

START = ("--space", f"{NAME}.yaml", *ONE_SLOT)
PATIENCE = ("--patience", "0.1")  # minutes


def worker_killed(search: Search, lab: Lab, trial: int) -> str:
    """Kill the worker of a trial once."""
    search.start(*START)
    search.until(lambda: trial in search.workers() and len(search.records(trial)) >= 10, f"training of {trial:03d}")
    search.workers()[trial].kill()
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_all(search, lab)
    return f"retried; same figures; {search.retrained()} of about 100 records made again"


def worker_dies(search: Search, lab: Lab) -> str:
    """Let a trial's process exit at step 10, which is before its first rung, every time."""
    search.start(*START, fault={"kind": "die", "trial": 1, "step": 10, "times": 9})
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_whole(search, 6, failed=(1,))
    check_mlflow(search)
    starts = (search.folder / "trials" / "001" / "log.txt").read_text().count(" trial 001 ")
    require(starts == 2, f"it was tried {starts} times")
    return f"tried twice; failed: {search.trials()[1].reason}"


def failed_trial_offered_again(search: Search, lab: Lab) -> str:
    """Let a trial's process exit twice, and resume with --retry-failed."""
    search.start(*START, fault={"kind": "die", "trial": 1, "step": 10, "times": 2})
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_whole(search, 6, failed=(1,))
    search.resume("--retry-failed")
    check_whole(search, 6)
    check_mlflow(search)
    return f"001 is {search.trials()[1].status}"


def ray_dies(search: Search, lab: Lab, program: str) -> str:
    """Kill one of Ray's own processes in training."""
    search.start(*START)
    search.until(search.trains, "training")
    time.sleep(lab.random.uniform(0, 4))
    search.named(program)[0].kill()
    began = time.monotonic()
    code = search.end(60)
    seconds = time.monotonic() - began
    require(code == 3, f"the search ended with {code}:\n{search.text[-1500:]}")
    require(seconds < 30, f"it took {seconds:.0f} s")
    require("--resume" in search.text.splitlines()[-1] or "resume  " in search.text, "no line that resumes")
    check_gone(search)
    search.resume()
    check_all(search, lab)
    return f"exit 3 after {seconds:.0f} s; resumed, same figures"


def worker_hangs(search: Search, lab: Lab) -> str:
    """Let a trial hang in a step, once."""
    lab.reference()
    search.start(*START, *PATIENCE, fault={"kind": "hang", "trial": 1, "step": 10, "times": 1})
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    require("reported nothing for" in search.text, f"the watchdog ended no trial:\n{search.text[-1500:]}")
    check_all(search, lab)
    return "ended and retried; same figures"


def worker_stopped(search: Search, lab: Lab) -> str:
    """Stop a worker with SIGSTOP."""
    search.start(*START, *PATIENCE)
    search.until(lambda: 1 in search.workers() and len(search.records(1)) >= 10, "training of 001")
    search.workers()[1].suspend()
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    require("reported nothing for" in search.text, f"the watchdog ended no trial:\n{search.text[-1500:]}")
    check_all(search, lab)
    return "ended and retried; same figures"


def out_of_memory(search: Search, lab: Lab, memory: str) -> str:
    """Let every pass over more than 250 tokens fail: a batch of the toy corpus has more."""
    search.start(*START, fault={"kind": "memory", "memory": memory, "tokens": 250})
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_whole(search, 6)
    check_mlflow(search)
    failed = {record[HELD] for number in range(6) for record in search.records(number) if HELD in record}
    require(bool(failed) and max(failed) <= 250, f"passes of {failed} tokens: the fault did not happen")
    proposed = {trial.config().machine.micro_batch_tokens for trial in search.trials()} - {None}
    require(proposed <= failed, f"later trials were given passes of {proposed} tokens; {failed} held")
    also = ", which later trials began with" if proposed else ""
    return f"all trials ended, in passes of {max(failed):.0f} tokens{also}"


def one_example_too_large(search: Search, lab: Lab) -> str:
    """Let every pass of a trial fail."""
    search.start(*START, fault={"kind": "memory", "memory": "cuda", "tokens": 0, "trial": 2})
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_whole(search, 6, failed=(2,))
    return search.trials()[2].reason


def not_a_number(search: Search, lab: Lab) -> str:
    """Break a trial's weights in training."""
    search.start(*START, fault={"kind": "nan", "trial": 2, "step": 10, "times": 9})
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_whole(search, 6, failed=(2,))
    check_mlflow(search)
    return search.trials()[2].reason


def signalled(search: Search, lab: Lab, number: signal.Signals, code: int) -> str:
    """Send the driver a signal in training."""
    search.start(*START)
    search.until(lambda: search.trains(15), "training")
    time.sleep(lab.random.uniform(0, 2))
    search.kill(number)
    began = time.monotonic()
    require(search.end(60) == code, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    seconds = time.monotonic() - began
    require(seconds < 10, f"it took {seconds:.1f} s")
    check_gone(search)
    search.resume()
    check_all(search, lab)
    again = search.retrained()
    require(again == 0, f"{again} records were made again")
    return f"exit {code} after {seconds:.1f} s; resumed, nothing made again"


def signalled_at_the_start(search: Search, lab: Lab) -> str:
    """Send Ctrl-C within the first two seconds."""
    search.start(*START)
    time.sleep(lab.random.uniform(0.2, 2))
    search.kill(signal.SIGINT)
    require(search.end(60) == 130, f"the command ended with {search.code}:\n{search.text[-1500:]}")
    lines = [line for line in search.text.splitlines() if line]
    require(len(lines) <= 1, f"{len(lines)} lines: {search.text}")
    check_gone(search)
    return f"exit 130; {''.join(lines)}"


RETRIED = "retried from its snapshot under its own number; same figures"
STOPPED = "exit 130 within 10 s, nothing trained twice, no process left"
PROCESSES = [
    Case("worker killed", RETRIED, partial(worker_killed, trial=1), times=2),
    Case("worker of the baseline killed", RETRIED, partial(worker_killed, trial=0)),
    Case("worker dies each time", "tried twice, failed with its reason", worker_dies),
    Case("failed trial, --retry-failed", "ended under its own number", failed_trial_offered_again),
    Case("raylet killed", "one sentence, exit 3 within 30 s; resumed", partial(ray_dies, program="raylet"), times=2),
    Case("GCS killed", "one sentence, exit 3 within 30 s; resumed", partial(ray_dies, program="gcs_server"), times=2),
    Case("step hangs", "ended by the watchdog, retried", worker_hangs),
    Case("worker stopped", "ended by the watchdog, retried", worker_stopped),
    Case("out of memory: CUDA", "in smaller passes", partial(out_of_memory, memory="cuda")),
    Case("out of memory: allocator", "in smaller passes", partial(out_of_memory, memory="allocator")),
    Case("out of memory: Python", "in smaller passes", partial(out_of_memory, memory="python")),
    Case("one example does not fit", "failed, the others unharmed", one_example_too_large),
    Case("NaN", "failed, the others unharmed", not_a_number),
    Case("Ctrl-C", STOPPED, partial(signalled, number=signal.SIGINT, code=130), times=2),
    Case("SIGTERM", STOPPED, partial(signalled, number=signal.SIGTERM, code=130)),
    Case("SIGHUP", STOPPED, partial(signalled, number=signal.SIGHUP, code=130)),
    Case("SIGUSR1", STOPPED, partial(signalled, number=signal.SIGUSR1, code=130)),
    Case("Ctrl-C at the start", "exit 130, at most one sentence", signalled_at_the_start, times=4),
]
