"""Faults inside the processes of a search. Python imports this file at its start, because its folder is on PYTHONPATH.

FAULT, an environment variable, holds the fault as JSON: {"kind": "die", "trial": 2, "step": 30, "times": 1, "marks": DIR}. It
happens in training, at a step of a trial (default: of any), at most `times` times in all processes together, which count in the
folder `marks`. Only the kind "write" happens in the driver: the process dies before its write number `write`.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from typing import Any

FAULT: dict[str, Any] = json.loads(os.environ.get("FAULT", "{}"))
MESSAGES = {
    "cuda": "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "allocator": "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B",
    "python": "",
}
here: dict[str, Any] = {"trial": None}  # the trial that this process trains


def happens(step: int | None = None) -> bool:
    """Return whether the fault is due in this process now, and count it."""
    if FAULT.get("trial", here["trial"]) != here["trial"] or here["trial"] is None:
        return False
    if step is not None and step < FAULT.get("step", 0):
        return False
    for number in range(FAULT.get("times", 1)):
        try:
            os.close(os.open(os.path.join(FAULT["marks"], f"{FAULT['kind']}-{number}"), os.O_CREAT | os.O_EXCL))
            return True
        except FileExistsError:
            continue
    return False


def patch_folder(module: Any) -> None:
    """Note which trial this process trains."""
    train_in = module.train_in

    def noted(folder: Any, *arguments: Any, **keywords: Any) -> Any:
        here["trial"] = int(folder.name) if folder.name.isdigit() else None
        return train_in(folder, *arguments, **keywords)

    module.train_in = noted


def patch_step(module: Any) -> None:
    """Let a training step kill its process, hang, or break the model."""
    step = module.Stepper.step

    def faulty(self: Any, number: int, *arguments: Any, **keywords: Any) -> Any:
        if happens(number):
            if FAULT["kind"] == "die":
                os._exit(137)
            if FAULT["kind"] == "hang":
                time.sleep(10**6)
            if FAULT["kind"] == "nan":
                next(iter(self.model.encoder.parameters())).data.fill_(float("nan"))
        return step(self, number, *arguments, **keywords)

    module.Stepper.step = faulty


def patch_encoder(module: Any) -> None:
    """Let a pass over more than `tokens` tokens run out of memory."""
    import torch

    forward = module.Encoder.forward
    errors = {"cuda": torch.OutOfMemoryError, "allocator": RuntimeError, "python": MemoryError}

    def narrow(self: Any, packed: Any, *arguments: Any, **keywords: Any) -> Any:
        is_meant = FAULT.get("trial", here["trial"]) == here["trial"] is not None
        if is_meant and torch.is_grad_enabled() and len(packed.token_ids_N) > FAULT["tokens"]:
            raise errors[FAULT["memory"]](MESSAGES[FAULT["memory"]])
        return forward(self, packed, *arguments, **keywords)

    module.Encoder.forward = narrow


PATCHES = {"minbert_core.train.folder": patch_folder}
if FAULT.get("kind") in ("die", "hang", "nan"):
    PATCHES["minbert_core.train.step"] = patch_step
if FAULT.get("kind") == "memory":
    PATCHES["minbert_core.encoder"] = patch_encoder


class Patcher(importlib.abc.MetaPathFinder):
    """Patches modules after they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def patched(module: Any) -> None:
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


WRITES = {"os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "os.mkdir"}
writes = 0


def count_write(event: str, arguments: tuple[Any, ...]) -> None:
    """Count the driver's writes into the search's folder, and end the process before number `write`."""
    global writes
    is_open = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (event in WRITES or is_open) and isinstance(arguments[0], str) and FAULT["folder"] in arguments[0]:
        writes += 1
        if writes == FAULT["write"]:
            os._exit(137)
        if FAULT["write"] == 0:  # only count
            with open(os.path.join(FAULT["marks"], "writes"), "w") as file:
                file.write(str(writes))


if FAULT.get("kind") == "write":
    if "search.run" in sys.orig_argv:
        sys.addaudithook(count_write)
elif FAULT:
    sys.meta_path.insert(0, Patcher())
