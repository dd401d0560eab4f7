"""Silence for libraries that print while they load and export: an export's own lines are what matters."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec


def quieten() -> None:
    """Switch off progress bars and reports of the libraries, and their questions to the hub: a folder is all they need."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # a line per operator of torchvision, which is not installed
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    if find_spec("transformers") is not None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
