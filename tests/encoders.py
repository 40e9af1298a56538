"""Llama-style encoders with random weights and bidirectional attention, as large as a test needs."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import EuroBertConfig, EuroBertModel

from domain_embed.models import model_path

REAL = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}  # the width of Llama 3.2 1B, which Llama-Nemotron-Embed-1B-v2 has
REAL_VOCABULARY, REAL_LAYERS = 128_256, 16


def random_encoder(
    folder: Path,  # where it is written
    vocabulary: int = 30_522,  # rows of the embedding table; the tokenizer is the packaged model's
    dtype: torch.dtype = torch.float32,
    **sizes: int,  # of `EuroBertConfig`
) -> str:
    "Write an encoder as sentence-transformers loads it."
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        model = EuroBertModel(EuroBertConfig(vocab_size=vocabulary, pad_token_id=0, bos_token_id=101, eos_token_id=102, max_position_embeddings=512, **sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    plain = folder / "plain"
    model.save_pretrained(plain)
    SentenceTransformer(model_path("embedded"), device="cpu").tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=256, model_kwargs={"dtype": dtype})
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(folder / "model"), create_model_card=False)
    return str(folder / "model")
