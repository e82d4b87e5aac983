"""Writes sparse files of DeepSeek-R1 and other models at full size: a GGUF header with the true shapes and types, then a hole.

Such a file takes a few megabytes of the disk. It holds no weights, so no engine can answer with it. But llama-fit-params reads only
the header, and reports the same memory for such a file as for the published one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from r1prov.models.layout import (
    DENSE_LAYERS,
    EMBEDDING,
    HEADS,
    KEY_LENGTH,
    LATENT,
    LAYERS,
    ROPE_LENGTH,
    VALUE_LENGTH,
    VOCABULARY,
    tensors,
)
from r1prov.models.model import Tensor
from tests.cuda.models import MODELS, Description
from tests.fixtures.tinymodel import add_constants


def file_in(folder: Path, model: str, *, mla: bool | None) -> Path:
    """The file of a quant of R1, or of a model of `models` where `mla` is None. The first call for a model writes its file."""
    path = folder / f"{model}-{mla}.gguf"
    if path.exists():
        return path
    return write_other(path, MODELS[model]()) if mla is None else write(path, model, mla=mla)


def write(path: Path, quant: str, *, mla: bool) -> Path:
    """Writes the header of `quant` to `path` and extends the file to its true size. Returns `path`."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_name("DeepSeek R1 BF16")
    add_constants(writer)
    _add_hyperparameters(writer, mla=mla)
    _add_tokenizer(writer, VOCABULARY)
    writer.add_chat_template("{{ messages[0]['content'].split('</think>')[-1] }}")  # of R1's, what the plan looks for
    return _finished(path, writer, tensors(quant, mla=mla))


def write_other(path: Path, description: Description) -> Path:
    """Does the same as `write` for the model of `description`."""
    writer = gguf.GGUFWriter(path, description.metadata["general.architecture"])
    for key, value in description.metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    _add_tokenizer(writer, description.vocabulary)
    return _finished(path, writer, description.tensors)


def _finished(path: Path, writer: gguf.GGUFWriter, of_model: Sequence[Tensor]) -> Path:
    for tensor in of_model:
        kind = gguf.GGMLQuantizationType[tensor.type]
        # The type of the array only matters for arrays of bytes; float32 leaves the shape as it is.
        writer.add_tensor_info(tensor.name, tensor.shape[::-1], np.dtype(np.float32), tensor.n_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    alignment = gguf.GGUF_DEFAULT_ALIGNMENT
    size = writer.ggml_pad(path.stat().st_size, alignment)
    size += sum(writer.ggml_pad(tensor.n_bytes, alignment) for tensor in of_model)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def _add_hyperparameters(writer: gguf.GGUFWriter, *, mla: bool) -> None:
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(18432)
    writer.add_leading_dense_block_count(DENSE_LAYERS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_head_count(HEADS)
    writer.add_q_lora_rank(1536)
    writer.add_kv_lora_rank(LATENT)
    if mla:
        writer.add_head_count_kv(1)
        writer.add_key_length(LATENT + ROPE_LENGTH)
        writer.add_value_length(LATENT)
        writer.add_key_length_mla(KEY_LENGTH)
        writer.add_value_length_mla(VALUE_LENGTH)
    else:
        writer.add_head_count_kv(HEADS)
        writer.add_key_length(KEY_LENGTH)
        writer.add_value_length(VALUE_LENGTH)
    writer.add_expert_count(256)
    writer.add_expert_used_count(8)
    writer.add_expert_feed_forward_length(2048)
    writer.add_rope_dimension_count(ROPE_LENGTH)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """Adds as many tokens as the real vocabulary has; their texts do not matter."""
    writer.add_token_list([f"<{number}>" for number in range(vocabulary)])
    writer.add_token_merges(["< 0"])


if __name__ == "__main__":
    _, target, wanted, attention = sys.argv
    write(Path(target), wanted, mla=attention == "mla")
