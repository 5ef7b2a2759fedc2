"""transformers' common tests for a plain T5 and for the fused model; transformers_suite.py puts this among them."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from t5fusion import T5FusionConfig, T5WithFusion, VectorKind

SIZES = {
    "vocab_size": 99, "d_model": 32, "d_ff": 37, "d_kv": 8, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.1,
    "relative_attention_num_buckets": 8, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    "bos_token_id": 0,
}  # fmt: skip
VECTORS, LEXICAL_ID = 2, 2  # The id has a row even in the smallest table, so that `inputs_embeds` may hold it.
KINDS = {"item": 16, "image": VectorKind(8, tokens=4, projector="mlp")}

# In this table, transformers' tests look up the models that take labels.
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["t5_fusion"] = "T5WithFusion"


class Tester:
    """Sizes, a config and inputs. The common tests fix the names."""

    batch_size, seq_length, encoder_seq_length, decoder_seq_length = 7, 9, 7, 9
    hidden_size, num_hidden_layers, num_attention_heads = SIZES["d_model"], SIZES["num_layers"], SIZES["num_heads"]
    vocab_size, is_training = SIZES["vocab_size"], True

    def __init__(self, fused: bool, vectors: int, kinds: bool):
        self.fused, self.vectors, self.kinds = fused, vectors, kinds

    def get_config(self):
        if not self.fused:
            return T5Config(**SIZES)
        choices = {"vectors": KINDS} if self.kinds else {"lexical_dim": 16}
        return T5FusionConfig(**SIZES, **choices, lexical_token_id=LEXICAL_ID)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        inputs = {
            "input_ids": ids_tensor([self.batch_size, self.encoder_seq_length], self.vocab_size).clamp(LEXICAL_ID + 2),
            "attention_mask": torch.ones(self.batch_size, self.encoder_seq_length, dtype=torch.int64),
            "decoder_input_ids": ids_tensor([self.batch_size, self.decoder_seq_length], self.vocab_size),
            "decoder_attention_mask": torch.ones(self.batch_size, self.decoder_seq_length, dtype=torch.int64),
            "use_cache": False,
        }
        if self.vectors:
            inputs["input_ids"][:, : self.vectors] = LEXICAL_ID
            inputs["lexical_embeds"] = torch.randn(self.batch_size, self.vectors, config.lexical_dim)
        if self.kinds:
            inputs["input_ids"][:, :1], inputs["input_ids"][:, 1:5] = LEXICAL_ID, LEXICAL_ID + 1
            inputs["lexical_embeds"] = {
                name: torch.randn(self.batch_size, 1, kind.dim) for name, kind in config.kinds.items()
            }
        return config, inputs


class Common(ModelTesterMixin, GenerationTesterMixin):
    is_encoder_decoder = True
    model_split_percents = (0.8, 0.9)
    fused, vectors, kinds = True, 0, False

    def setUp(self):
        self.model_tester = Tester(self.fused, self.vectors, self.kinds)


class TestT5(Common, unittest.TestCase):
    all_model_classes = (T5ForConditionalGeneration,)
    fused = False


class TestWithVectors(Common, unittest.TestCase):
    all_model_classes = (T5WithFusion,)
    additional_model_inputs = ("lexical_embeds",)
    vectors = VECTORS


class TestWithKinds(Common, unittest.TestCase):
    """Two kinds of vectors. A vector of one of them takes four tokens."""

    all_model_classes = (T5WithFusion,)
    additional_model_inputs = ("lexical_embeds",)
    kinds = True

    def setUp(self):
        super().setUp()
        if self._testMethodName.startswith(("test_eager_matches_sdpa_inference", "test_batching_equivalence")):
            self.skipTest("The test takes each input for a tensor. The vectors of several kinds are a dict.")


class TestWithoutVectors(Common, unittest.TestCase):
    all_model_classes = (T5WithFusion,)
