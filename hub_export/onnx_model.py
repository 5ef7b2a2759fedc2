"""Run the ONNX graphs of a bundle with onnxruntime, and compare them with its reference."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import cached_file

from ..configuration_t5fusion import T5FusionConfig
from ..modeling_t5fusion import check_placeholders, check_vectors
from . import reader_check
from .onnx_graphs import DATA, DECODER, ENCODER, LOGITS, as_cache, need, past_names

BOUND = 1e-4  # of the largest logit: how far those of onnxruntime may lie from those of torch


class OnnxT5WithFusion(PreTrainedModel, GenerationMixin):
    """The graphs of a bundle, run by onnxruntime on the CPU; transformers' own `generate` drives them.

    `model.generate(**processor(["app_config"]), num_beams=4)` as with the model itself. For inference alone.

    Args:
        encoder, decoder: the `onnxruntime.InferenceSession` of each graph.
    """

    config_class = T5FusionConfig
    device = torch.device("cpu")  # in place of those that weights would have
    dtype = torch.float32

    def __init__(self, encoder, decoder, config: T5FusionConfig, generation_config: GenerationConfig):
        super().__init__(config)
        self.encoder = Encoder(encoder, config)
        self.session = decoder
        self.generation_config = generation_config

    @classmethod
    def from_pretrained(cls, name: str | Path, session_options=None, **hub) -> "OnnxT5WithFusion":
        """Loads the graphs of a folder or of a repository on the Hub.

        Args:
            session_options: of onnxruntime, for both graphs.
            **hub: `revision`, `token`, `cache_dir` and their like.

        Raises:
            ImportError: onnxruntime is not installed. OSError: there are no graphs, or they cannot be had.
        """
        encoder, decoder = (open_session(name, file, session_options, hub) for file in (ENCODER, DECODER))
        config = T5FusionConfig.from_pretrained(name, **hub)
        return cls(encoder, decoder, config, GenerationConfig.from_pretrained(name, **hub))

    def get_encoder(self) -> "Encoder":
        return self.encoder

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        encoder_outputs=None,
        past_key_values=None,
        lexical_embeds=None,
        use_cache=None,
        return_dict=None,
    ) -> Seq2SeqLMOutput:
        """`T5WithFusion.forward` by the graphs: `logits`, float32 (batch, new, vocabulary), and the cache.

        Args:
            input_ids, attention_mask, lexical_embeds: as there; not looked at, but for the mask, when `encoder_outputs`
                are given.
            decoder_input_ids: int64 (batch, new), the tokens that `past_key_values` do not hold yet.
            use_cache, return_dict: `generate` gives them; there is always a cache, and it is always an output.

        Raises:
            ValueError: vectors and placeholders do not fit.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, lexical_embeds)
        if attention_mask is None:
            attention_mask = torch.ones(encoder_outputs.last_hidden_state.shape[:2], dtype=torch.int64)
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            past_key_values = as_cache(self.first_past(encoder_outputs))
        layers = zip(past_key_values.self_attention_cache, past_key_values.cross_attention_cache, strict=True)
        past = [part for own, encoder in layers for part in (*own[:2], *encoder[:2])]
        inputs = {"input_ids": decoder_input_ids, "encoder_attention_mask": attention_mask}
        inputs |= dict(zip(past_names(len(past) // 4), past, strict=True))
        logits, *present = run(self.session, inputs)
        for layer, pair in enumerate(past_key_values.self_attention_cache.layers):
            pair.keys, pair.values = present[2 * layer : 2 * layer + 2]
        return Seq2SeqLMOutput(logits=logits, past_key_values=past_key_values)

    def first_past(self, encoder_outputs: BaseModelOutput) -> list[torch.Tensor]:
        """What the decoder takes at the first token: the encoder's keys and values, and none of its own."""
        rows, config = len(encoder_outputs.last_hidden_state), self.config
        none = torch.zeros(rows, config.num_heads, 0, config.d_kv)
        names = past_names(config.num_decoder_layers, stem="present")
        return [none if ".decoder." in name else encoder_outputs[name] for name in names]


class Encoder(nn.Module):
    """encoder_model.onnx, which `generate` runs by itself before the decoder."""

    main_input_name = "input_ids"

    def __init__(self, session, config: T5FusionConfig):
        super().__init__()
        self.session = session
        self.config = config

    def forward(
        self, input_ids, attention_mask=None, lexical_embeds=None,
        output_attentions=None, output_hidden_states=None, return_dict=None,
    ) -> BaseModelOutput:  # fmt: skip
        """`last_hidden_state`, and under their names in the graph the keys and values for the decoder.

        Raises:
            ValueError: vectors and placeholders do not fit; or the graph has no such outputs as are asked for.
        """
        if output_attentions or output_hidden_states:
            raise ValueError("the graphs have no output for attentions or hidden states. Ask the model itself.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_placeholder = input_ids == self.config.lexical_token_id
        if lexical_embeds is None:
            lexical_embeds = torch.zeros(len(input_ids), 0, self.config.lexical_dim)
        lexical_embeds = check_vectors(lexical_embeds, is_placeholder, self.config.lexical_dim).float()
        check_placeholders(is_placeholder, lexical_embeds, self.config.lexical_token_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "lexical_embeds": lexical_embeds}
        hidden, *kept = run(self.session, inputs)
        outputs = BaseModelOutput(last_hidden_state=hidden)
        for name, tensor in zip(past_names(len(kept) // 2, ["encoder"], "present"), kept, strict=True):
            outputs[name] = tensor  # `generate` repeats each of them for its beams
        return outputs


def open_session(name: str | Path, file: str, options, hub: dict):
    """The `onnxruntime.InferenceSession` of a graph in a folder or on the Hub."""
    need("onnxruntime")
    import onnxruntime

    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    if found is None:
        raise OSError(f"{name} holds no {file}. Write it with `t5fusion export --format onnx`.")
    cached_file(
        name, f"{file}{DATA}", _raise_exceptions_for_missing_entries=False, **hub
    )  # which the session looks for
    return onnxruntime.InferenceSession(found, options, ["CPUExecutionProvider"])


def run(session, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The outputs of a graph, in its order; tensors share their memory with onnxruntime wherever they can."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]


@torch.no_grad()
def check_graphs(folder: Path, reference: Path) -> str:
    """In what way the graphs of a bundle hold against what torch made of its reference: at once and token by token.

    Args:
        folder: the bundle. reference: its reference.safetensors.

    Raises:
        ImportError: onnxruntime is not installed. ValueError: they do not hold; or whatever onnxruntime raises.
    """
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = OnnxT5WithFusion.from_pretrained(folder, options)
    opened, expected = reader_check.Reference(str(reference)), load_file(folder / LOGITS)["logits"]
    written, columns, mask = opened.tensors["written"], opened.tensors["columns"], opened.inputs["attention_mask"]
    encoded, cache, by_token = model.encoder(**opened.inputs), None, []
    for token in written.split(1, dim=1):
        step = model(attention_mask=mask, decoder_input_ids=token, encoder_outputs=encoded, past_key_values=cache)
        cache = step.past_key_values
        by_token.append(step.logits)
    at_once = model(attention_mask=mask, decoder_input_ids=written, encoder_outputs=encoded).logits
    found = (at_once, torch.cat(by_token, dim=1))
    apart = max(float((logits[..., columns] - expected).abs().max()) for logits in found)
    bound = BOUND * float(expected.abs().max())
    if not apart <= bound:  # NaN is not either
        raise ValueError(f"logits lie {apart:.3g} apart, at most {bound:.3g} is to be expected: another model")
    return f"within {bound:.2g} of torch in fp32 ({apart:.2g})"
