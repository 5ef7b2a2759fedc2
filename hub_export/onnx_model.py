"""Run the ONNX graphs of a bundle with onnxruntime, and compare them with its reference."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import cached_file

from ..checking_t5fusion import check_batch, vectors_by_kind
from ..configuration_t5fusion import T5FusionConfig
from .onnx_graphs import DATA, DECODER, ENCODER, LOGITS, as_cache, check_installed, input_name, past_names
from .reader_check import Reference
from .reference import REFERENCE

BOUND = 1e-4  # How far onnxruntime's logits may lie from torch's, relative to the largest logit.


class OnnxT5WithFusion(PreTrainedModel, GenerationMixin):
    """The ONNX graphs of a bundle, run by onnxruntime on the CPU. It cannot be trained.

    `model.generate(**processor(["app_config"]), num_beams=4)` works as with the model itself: it is transformers' own.

    Args:
        encoder: The `onnxruntime.InferenceSession` of encoder_model.onnx.
        decoder: The `onnxruntime.InferenceSession` of decoder_with_past_model.onnx.
        config: The model's config.
        generation_config: The defaults of `generate`.
    """

    config_class = T5FusionConfig
    device = torch.device("cpu")  # transformers reads device and dtype from weights, and there are none here
    dtype = torch.float32

    def __init__(self, encoder, decoder, config: T5FusionConfig, generation_config: GenerationConfig):
        super().__init__(config)
        self.encoder = OnnxEncoder(encoder, config)
        self.session = decoder
        self.generation_config = generation_config

    @classmethod
    def from_pretrained(cls, name: str | Path, session_options=None, **hub_kwargs) -> "OnnxT5WithFusion":
        """Load the graphs of a folder or of a repository on the Hub.

        Args:
            name: The folder, or the id of the repository.
            session_options: `onnxruntime.SessionOptions` for both graphs.
            **hub_kwargs: `revision`, `token`, `cache_dir`, ...

        Raises:
            ImportError: onnxruntime is not installed.
            OSError: There are no graphs, or the Hub cannot be reached.
        """
        encoder, decoder = (open_session(name, file, session_options, hub_kwargs) for file in (ENCODER, DECODER))
        config = T5FusionConfig.from_pretrained(name, **hub_kwargs)
        return cls(encoder, decoder, config, GenerationConfig.from_pretrained(name, **hub_kwargs))

    def get_encoder(self) -> "OnnxEncoder":
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
        """Compute `T5WithFusion.forward` with the graphs.

        Args:
            input_ids: int64 (batch, length), as in `T5WithFusion`. Not used if `encoder_outputs` are given.
            attention_mask: int64 (batch, length), 1 for tokens and 0 for padding. Default: all 1.
            decoder_input_ids: int64 (batch, new), the tokens that are not in `past_key_values` yet.
            encoder_outputs: The outputs of `self.encoder`, if they are known.
            past_key_values: The cache of the tokens before.
            lexical_embeds: float (batch, vectors, dim), as in `T5WithFusion`. Not used if `encoder_outputs` are given.
            use_cache: Ignored: there always is a cache.
            return_dict: Ignored: the output always is a `Seq2SeqLMOutput`.

        Returns:
            `logits`, float32 (batch, new, vocabulary), and the cache.

        Raises:
            ValueError: Vectors and placeholders do not fit.
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
        logits, *present = run_graph(self.session, inputs)
        for layer, pair in enumerate(past_key_values.self_attention_cache.layers):
            pair.keys, pair.values = present[2 * layer : 2 * layer + 2]
        return Seq2SeqLMOutput(logits=logits, past_key_values=past_key_values)

    def first_past(self, encoder_outputs: BaseModelOutput) -> list[torch.Tensor]:
        """Return the cache for the first token: the encoder's keys and values, and empty ones for the decoder."""
        rows, config = len(encoder_outputs.last_hidden_state), self.config
        empty = torch.zeros(rows, config.num_heads, 0, config.d_kv)
        names = past_names(config.num_decoder_layers, stem="present")
        return [empty if ".decoder." in name else encoder_outputs[name] for name in names]


class OnnxEncoder(nn.Module):
    """The graph encoder_model.onnx, which `generate` runs before the decoder."""

    main_input_name = "input_ids"

    def __init__(self, session, config: T5FusionConfig):
        super().__init__()
        self.session = session
        self.config = config

    def forward(
        self, input_ids, attention_mask=None, lexical_embeds=None,
        output_attentions=None, output_hidden_states=None, return_dict=None,
    ) -> BaseModelOutput:  # fmt: skip
        """Return `last_hidden_state`, and the keys and values for the decoder under their names in the graph.

        Raises:
            ValueError: Vectors and placeholders do not fit, or attentions or hidden states are asked for.
        """
        if output_attentions or output_hidden_states:
            raise ValueError("the graphs have no output for attentions or hidden states. Ask the model itself.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        kinds, ids = self.config.kinds, self.config.placeholder_ids
        masks = {name: input_ids == ids[name] for name in kinds}
        vectors = check_batch(vectors_by_kind(lexical_embeds, kinds), masks, kinds, self.config.lexical_token_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        for name, kind in kinds.items():
            none = torch.zeros(len(input_ids), 0, kind.dim)
            inputs[input_name(self.config, name)] = vectors.get(name, none).float()
        hidden, *keys_and_values = run_graph(self.session, inputs)
        outputs = BaseModelOutput(last_hidden_state=hidden)
        names = past_names(len(keys_and_values) // 2, ["encoder"], "present")
        for name, tensor in zip(names, keys_and_values, strict=True):
            outputs[name] = tensor  # An entry of its own, because `generate` repeats each entry for its beams.
        return outputs


def open_session(name: str | Path, file: str, options, hub_kwargs: dict):
    """Return the `onnxruntime.InferenceSession` of a graph in a folder or on the Hub.

    Raises:
        ImportError: onnxruntime is not installed.
        OSError: There is no such graph.
    """
    check_installed("onnxruntime")
    import onnxruntime  # optional: the extra `onnx` installs it

    graph = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if graph is None:
        raise OSError(f"{name} holds no {file}. Write it with `t5fusion export --format onnx`.")
    # Download the weights as well, if they are in a file of their own: the session looks for it beside the graph.
    cached_file(name, f"{file}{DATA}", _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    return onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])


def run_graph(session, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs of a graph, in its order. Tensors share their memory with onnxruntime if they can."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]


@torch.no_grad()
def check_graphs(bundle: Path) -> str:
    """Run the graphs of a bundle on the inputs of its reference, and compare their logits with torch's.

    The decoder is run twice: with all tokens at once, and token by token.

    Returns:
        A sentence that says how far apart their logits are.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: The logits differ. (onnxruntime may raise errors of its own.)
    """
    check_installed("onnxruntime")
    import onnxruntime  # optional: the extra `onnx` installs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = OnnxT5WithFusion.from_pretrained(bundle, options)
    reference, expected = Reference(bundle / REFERENCE), load_file(bundle / LOGITS)["logits"]
    written, columns = reference.tensors["written"], reference.tensors["columns"]
    mask = reference.inputs["attention_mask"]
    encoded, cache, by_token = model.encoder(**reference.inputs), None, []
    for token in written.split(1, dim=1):
        step = model(attention_mask=mask, decoder_input_ids=token, encoder_outputs=encoded, past_key_values=cache)
        cache = step.past_key_values
        by_token.append(step.logits)
    at_once = model(attention_mask=mask, decoder_input_ids=written, encoder_outputs=encoded).logits
    both_ways = (at_once, torch.cat(by_token, dim=1))
    distance = max(float((logits[..., columns] - expected).abs().max()) for logits in both_ways)
    bound = BOUND * float(expected.abs().max())
    if not distance <= bound:  # true for NaN too
        raise ValueError(
            f"logits differ by {distance:.3g}; expected at most {bound:.3g}. Weights or code differ from the export"
        )
    return f"within {bound:.2g} of torch in fp32 ({distance:.2g})"
