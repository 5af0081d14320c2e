"""A tiny Llama as a GGUF file, written with the gguf package."""

from pathlib import Path

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 96
#: A byte-level BPE of single characters and one merge; the last two tokens are special.
TOKENS = [chr(33 + i) for i in range(94)] + ["Ġ", "ab", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under GGUF's names, as float32."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.2).astype(np.float32)

    found = {"token_embd.weight": matrix(len(TOKENS), WIDTH), "output_norm.weight": 1 + matrix(WIDTH)}
    for i in range(LAYERS):
        keys = KV_HEADS * WIDTH // HEADS
        found |= {
            f"blk.{i}.attn_norm.weight": 1 + matrix(WIDTH),
            f"blk.{i}.ffn_norm.weight": 1 + matrix(WIDTH),
            f"blk.{i}.attn_q.weight": matrix(WIDTH, WIDTH),
            f"blk.{i}.attn_k.weight": matrix(keys, WIDTH),
            f"blk.{i}.attn_v.weight": matrix(keys, WIDTH),
            f"blk.{i}.attn_output.weight": matrix(WIDTH, WIDTH),
            f"blk.{i}.ffn_gate.weight": matrix(INNER, WIDTH),
            f"blk.{i}.ffn_up.weight": matrix(INNER, WIDTH),
            f"blk.{i}.ffn_down.weight": matrix(WIDTH, INNER),
        }
    return found


def write_gguf(path: Path, architecture: str = "llama", seed: int = 0) -> dict[str, np.ndarray]:
    """Write the file, matrices in Q4_0 and vectors in float32; returns what the package reads back from each."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_chat_template(TEMPLATE)
    expected = {}
    for name, values in tensors(seed).items():
        kind = gguf.GGMLQuantizationType.Q4_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in transformers' order: GGUF lays both halves of a head's pairs side by side."""
    rows = np.arange(weight.shape[0]).reshape(heads, -1)
    return weight[np.concatenate([np.concatenate((head[0::2], head[1::2])) for head in rows])]
