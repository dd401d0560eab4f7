"""The watchdog, with a clock by hand, and a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from search.study.pulse import Pulse, read_process, stop_file
from search.study.watchdog import Watchdog, end_process, silence


class Clock:
    """Seconds that pass only when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    folder = tmp_path / "trials" / "003"
    folder.mkdir(parents=True)
    return folder


def listen(trial: Path, clock: Clock, dog: Watchdog, seconds: int, beat_every: int | None = None) -> dict[int, float]:
    """Let `seconds` pass, one by one, with a sign of life now and then; return the trials that hang, and end then."""
    for second in range(1, seconds + 1):
        clock.now += 1
        if beat_every and second % beat_every == 0:
            os.utime(trial / "alive", ns=(0, int(clock.now * 1e9)))
        if hanging := dog.look([(3, trial)]):
            return hanging
    return {}


def test_a_trial_that_is_silent_for_longer_than_the_patience_hangs(trial: Path) -> None:
    clock = Clock()
    dog = Watchdog(20, clock)
    dog.begin(3, trial)
    Pulse(trial, "node")
    assert listen(trial, clock, dog, 60, beat_every=1) == {}
    assert listen(trial, clock, dog, 20) == {}
    assert listen(trial, clock, dog, 2) == {3: 21}
    assert listen(trial, clock, dog, 100) == {}, "it is reported once"


def test_a_trial_with_long_intervals_may_be_silent_for_ten_of_them(trial: Path) -> None:
    clock = Clock()
    dog = Watchdog(20, clock)
    dog.begin(3, trial)
    Pulse(trial, "node")
    assert listen(trial, clock, dog, 36, beat_every=9) == {}
    hanging = listen(trial, clock, dog, 200)
    assert list(hanging) == [3]
    assert 80 <= hanging[3] <= 92


def test_a_trial_that_ray_has_not_begun_and_a_driver_that_was_suspended_do_not_count(trial: Path) -> None:
    clock = Clock()
    dog = Watchdog(20, clock)
    Pulse(trial, "of an earlier attempt")
    dog.begin(3, trial)
    assert listen(trial, clock, dog, 100) == {}
    os.utime(trial / "alive", ns=(0, 1))
    assert listen(trial, clock, dog, 10) == {}
    clock.now += 3600
    assert listen(trial, clock, dog, 1) == {}


def test_a_stopped_process_is_ended(trial: Path) -> None:
    imports = "import sys, time; from pathlib import Path; from search.study.pulse import Pulse"
    code = f"{imports}; Pulse(Path(sys.argv[1]), ''); print(); sys.stdout.flush(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(trial)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        end_process(trial)
        assert process.wait(10) == -signal.SIGKILL
    end_process(trial)  # it has ended meanwhile
    assert silence(361) == "it reported nothing for 6 min"


def test_a_pulse_sees_the_order_to_stop_and_a_cut_file_names_no_process(trial: Path) -> None:
    pulse = Pulse(trial, "node")
    assert not pulse()
    stop_file(trial.parent.parent).touch()
    pulse.next = 0.0
    assert pulse()
    assert read_process(trial) is not None
    (trial / "alive").write_text("{")
    assert read_process(trial) is None
    end_process(trial)
