"""Too little memory: how it is recognised, what is released before a repetition, and the error of what can never fit.

a pass fails -> is_out_of_memory -> release -> again in smaller passes (train/micro_batches.py, model.predict_logits)
             -> DoesNotFitError: nothing smaller is left
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import platform
import re
from collections.abc import Iterator

import torch

# of RuntimeErrors: torch's CPU allocator (Linux, then Windows), CUDA's own error, cuBLAS and cuDNN, oneDNN, C++
MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "status_alloc_failed",
    "could not create a memory",
    "could not create a primitive",  # seen where 60 MB were left; oneDNN says the same of shapes that it does not know
    "could not execute a primitive",
    "bad_alloc",
)


class DoesNotFitError(Exception):
    """Memory does not suffice for a pass over one example, or for something that cannot be divided. The trial ends."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was too small: a GPU's, torch's allocator on the CPU, Python's and NumPy's, or the system's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MESSAGES)


def reason_of(error: BaseException) -> str:
    """Return an error's first line, or its name if it has no text, as Python's own MemoryError; without torch's source line."""
    text = re.sub(r"^\[enforce fail at \S+\] err == 0\. ", "", str(error).strip())
    return next(iter(text.splitlines()), type(error).__name__).rstrip(".")


def release(device: torch.device) -> None:
    """Release the tensors of a failed pass. Call it outside the `except` block: there, the traceback still holds the graph."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # its blocks have the sizes of the failed pass, and smaller ones may not fit into them
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # machine.py lets it keep freed memory, which other trials may need


@contextlib.contextmanager
def indivisible(what: str) -> Iterator[None]:
    """Raise DoesNotFitError in place of an out-of-memory error inside the block, which smaller passes would not help."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(f"{what} does not fit into memory ({reason_of(error)}).") from error
