"""The tokenizer of an export, as files: it cuts, joins and marks pairs as the model does, and prepares the course's text.

Tokenizer ─► tokenizer.json, tokenizer_config.json, which transformers reads as they are
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import normalizers, processors

from minbert_core.data.tasks import Task
from minbert_core.data.tokens import Tokenizer

SPECIALS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
MARKS = (".", "?", ",", "'")  # that the course's preparation sets apart (data/corpus.py, `prepare`)


def save_tokenizer(tokenizer: Tokenizer, task: Task | None, max_length: int, folder: Path) -> None:
    """Write the files of a tokenizer that reads the texts of `task` as the model does.

    None: for all tasks of a model, so texts are not prepared.
    A pair is `[CLS] a [SEP] b [SEP]`, its second part with segment 1. Cutting, where asked for, is at max_length.
    """
    backend = tokenizer.backend()
    if task is not None and (normalizer := _preparation(backend.normalizer, task)):
        backend.normalizer = normalizer
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.cls_id), ("[SEP]", tokenizer.sep_id)],
    )
    known = {role: token for role, token in SPECIALS.items() if backend.token_to_id(token) is not None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],  # without them a pair has no segments
        "pad_token": "[SEP]",  # padding has no influence, so any token serves
        **known,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    backend.save(str(folder / "tokenizer.json"))


def _preparation(normalizer: Any, task: Task) -> Any:
    """Return a normaliser that first prepares a text of the course as its files are prepared; None where that changes nothing.

    A BertNormalizer without case does the same, and BERT's pre-tokenizer sets the marks apart.
    """
    if task.course_text is None or (isinstance(normalizer, normalizers.BertNormalizer) and normalizer.lowercase):
        return None
    spaced = [normalizers.Replace(mark, f" {mark}") for mark in MARKS] if task.course_text == "split_punctuation" else []
    return normalizers.Sequence([normalizers.Lowercase(), *spaced, *([normalizer] if normalizer is not None else [])])
