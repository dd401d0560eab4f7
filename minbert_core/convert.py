"""The command that turns a checkpoint of the course (`torch.save` of a student's model) into a folder in Hugging Face layout.

    python -m minbert_core.checkpoints convert FILE.pt --to DIR

    FILE.pt -> read_tensors -> the model's tensors -> encoder_weights -> the encoder's, in Hugging Face's names -> DIR

Weights only: the encoder is converted, heads and optimiser are left out. torch reads the pickle with `weights_only`, in which
tensors, numbers and the plain namespaces that the course's `save_model` adds are allowed, and nothing is ever run.

Exit codes are those of minbert_core/commands.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from minbert_core.commands import DONE, Refused, run_command
from minbert_core.words import counted

if TYPE_CHECKING:  # importing torch takes a second, so the command line is checked first
    from torch import Tensor

# the course's bert.py (gpoesia/minbert-default-final-project): its modules -> those of transformers' BertModel
COURSE_MODULES = {
    "word_embedding": "embeddings.word_embeddings",
    "pos_embedding": "embeddings.position_embeddings",
    "tk_type_embedding": "embeddings.token_type_embeddings",
    "embed_layer_norm": "embeddings.LayerNorm",
    "pooler_dense": "pooler.dense",
}
COURSE_LAYER = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "attention_dense": "attention.output.dense",
    "attention_layer_norm": "attention.output.LayerNorm",
    "interm_dense": "intermediate.dense",
    "out_dense": "output.dense",
    "out_layer_norm": "output.LayerNorm",
}
FIRST = (
    "word_embedding.weight",
    "embeddings.word_embeddings.weight",
)  # by these an encoder is found
MOST_NAMES = 6  # of tensors that were left out, which are shown


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run_command(parser(), arguments, lambda options: convert(options.file, options.to, options.like), writes="to")


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m minbert_core.checkpoints`."""
    made = argparse.ArgumentParser(
        prog="python -m minbert_core.checkpoints",
        usage="%(prog)s convert FILE.pt --to DIR [options]",
        description="Convert the encoder of the course's checkpoint to a Hugging Face folder.",
        epilog="examples:\n  python -m minbert_core.checkpoints convert finetune-multitask.pt --to mine\n"
        "  python -m minbert_core.checkpoints convert small.pt --to small --like encoder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("verb", choices=["convert"], metavar="convert", help="the only thing that this command does")
    made.add_argument("file", type=Path, metavar="FILE.pt", help="a file that the course's save_model wrote")
    made.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to write")
    about = "the BERT that was fine-tuned, whose tokenizer DIR gets: hub name or folder (default bert-base-uncased)"
    made.add_argument("--like", default="bert-base-uncased", metavar="NAME", help=about)
    return made


def convert(file: Path, to: Path, like: str) -> int:
    """Write the encoder of `file` to the new folder `to`, with the tokenizer and config.json of `like`; return the exit code.

    Raises ValueError: not such a file, or an encoder of another shape; Refused: `to` exists; OSError.
    """
    from minbert_core.checkpoints import fetch_encoder, misfits, read_shape
    from minbert_core.encoder_files import WEIGHTS
    from minbert_core.files import replaced
    from minbert_core.model import TOKENIZER_FILES
    from minbert_core.tensor_files import save_tensors

    if to.exists():
        raise Refused(f"{to} exists. Give a new folder with --to, or delete it.")
    weights, left_out = encoder_weights(read_tensors(file), file)
    base = fetch_encoder(like)
    stored = {name: (tuple(tensor.shape), "F32" if tensor.is_floating_point() else "I64") for name, tensor in weights.items()}
    if faults := list(misfits(read_shape(base), stored)):
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        remedy = "Name the BERT that was fine-tuned with --like."
        raise ValueError(f"The encoder in {file} is not like {like}: {'; '.join(faults[:3])}{more}. {remedy}")
    to.parent.mkdir(parents=True, exist_ok=True)
    with replaced(to, durable=True) as draft:
        draft.mkdir()
        for name in ("config.json", *TOKENIZER_FILES):
            if (base / name).exists():
                shutil.copyfile(base / name, draft / name)
        save_tensors({name: tensor.float().contiguous() for name, tensor in weights.items()}, draft / WEIGHTS, {"format": "pt"})
    print(f"encoder   {to}: {counted(sum(tensor.numel() for tensor in weights.values()), 'weight')}, tokenizer of {like}")
    if left_out:
        more = f" and {len(left_out) - MOST_NAMES} more" if len(left_out) > MOST_NAMES else ""
        print(f"left out  {', '.join(left_out[:MOST_NAMES])}{more}: no weights of the encoder")
    print(f"next      python -m search.run --space spaces/smart.yaml --encoder {to}")
    return DONE


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of the model in a file of `torch.save`.  Raises ValueError: another file, or one that would run code."""
    import numpy as np
    import torch

    from minbert_core.encoder_files import check_content

    if not file.exists():
        raise ValueError(f"There is no file {file}.")
    check_content(file)
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    plain: list[Any] = [argparse.Namespace, SimpleNamespace, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    plain += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # of NumPy 1 and 2
    law = "A file that torch.save wrote, with tensors and plain values only, can be converted."
    try:
        with torch.serialization.safe_globals(plain):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        name = str(error).partition("Unsupported global: GLOBAL ")[2].split(" ")[0]
        what = f"contains the class {name}, which could run code, so it is not opened" if name else "cannot be read"
        raise ValueError(f"{file} {what}. {law}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:  # torch's, for other kinds of files
        raise ValueError(f"{file} cannot be read ({type(error).__name__}). {law}") from None
    state = content.get("model", content) if isinstance(content, dict) else content
    tensors = (
        {str(name): item for name, item in state.items() if isinstance(item, torch.Tensor)} if isinstance(state, dict) else {}
    )
    if not tensors:
        raise ValueError(f"{file} holds no model. {law} The course's save_model puts the model's state_dict under 'model'.")
    return tensors


def encoder_weights(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the encoder's tensors by their names in transformers' BertModel, and the names of all others.

    Raises ValueError if there is no encoder, or more than one.
    """
    starts = {name.removesuffix(first) for name in tensors for first in FIRST if f".{name}".endswith(f".{first}")}
    if len(starts) != 1:
        what = f"{len(starts)} encoders ({', '.join(sorted(starts))})" if starts else "no encoder"
        law = "One is converted, with a `word_embedding` as in the course's bert.py, or in the names of transformers' BertModel"
        raise ValueError(f"{file} holds {what}. {law}. Got {', '.join(list(tensors)[:MOST_NAMES])} …")
    [start] = starts
    weights: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        stored = _stored_name(name.removeprefix(start)) if name.startswith(start) else ""
        if stored:
            weights[stored] = tensor
        elif name.removeprefix(start) not in ("position_ids", "embeddings.position_ids"):  # a constant
            left_out.append(name)
    return weights, left_out


def _stored_name(name: str) -> str:
    """Return the name in transformers' BertModel of a tensor of the course's BertModel; empty for one that it has not."""
    if name.startswith(("embeddings.", "encoder.layer.", "pooler.dense.")):
        return "" if name.endswith("position_ids") else name
    module, _, leaf = name.rpartition(".")
    if module.startswith("bert_layers."):
        _, index, module = module.split(".", 2)
        return f"encoder.layer.{index}.{COURSE_LAYER[module]}.{leaf}" if module in COURSE_LAYER else ""
    return f"{COURSE_MODULES[module]}.{leaf}" if module in COURSE_MODULES else ""


if __name__ == "__main__":
    sys.exit(main())
