"""Writes a model of some 100 kB with chance for knowledge: it says a dozen printable letters and stops.

Run by the Python that has llama-cpp-python: `python tiny.py FILE`. Of the kind qwen2 llama.cpp also pools embeddings.
"""

import sys
from collections.abc import Iterator

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

WIDTH = 32
INNER = 64
HEADS = 2
CONTEXT = 4096
CONTROL = ["<unk>", "<s>", "</s>"]
END = CONTROL.index("</s>")
PIECES = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
TYPES = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
# The first number of each state is about this after the last norm: so it can move the logit of each token.
STEADY = WIDTH**0.5


def tensors() -> Iterator[tuple[str, "np.ndarray"]]:
    chance = np.random.default_rng(7)

    def some(*shape: int) -> "np.ndarray":
        return (chance.standard_normal(shape) * 0.1).astype(np.float32)

    tokens, output = some(len(PIECES), WIDTH), some(len(PIECES), WIDTH)
    tokens[:, 0] = 20.0
    output[:, 0] = [logit(token) / STEADY for token in range(len(PIECES))]
    yield "token_embd.weight", tokens
    yield "output.weight", output
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        yield f"{name}.weight", np.ones(WIDTH, np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield f"blk.0.{name}.weight", some(WIDTH, WIDTH)
    for name in ("attn_q", "attn_k", "attn_v"):
        yield f"blk.0.{name}.bias", np.zeros(WIDTH, np.float32)
    yield "blk.0.ffn_gate.weight", some(INNER, WIDTH)
    yield "blk.0.ffn_up.weight", some(INNER, WIDTH)
    yield "blk.0.ffn_down.weight", some(WIDTH, INNER)


def logit(token: int) -> float:
    """Printable ASCII, and now and then the end."""
    if token == END:
        return 2.0
    return 0.0 if 0x20 <= token - len(CONTROL) < 0x7F else -20.0


def write(path: str) -> None:
    out = GGUFWriter(path, "qwen2")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_pooling_type(PoolingType.MEAN)
    out.add_tokenizer_model("llama")
    out.add_token_list(PIECES)
    out.add_token_scores([0.0] * len(PIECES))
    out.add_token_types(TYPES)
    out.add_unk_token_id(0)
    out.add_bos_token_id(1)
    out.add_eos_token_id(END)
    for name, tensor in tensors():
        out.add_tensor(name, tensor)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    write(sys.argv[1])
