"""A fused model as ONNX graphs: write them, run them with onnxruntime, and compare them with a bundle's reference.

Two graphs, all weights in fp32, an adapter folded in; sizes in words are dynamic, `vectors` and `past` may be 0:

- encoder_model.onnx: `input_ids`, `attention_mask` int64 (batch, length) and `lexical_embeds` float32 (batch, vectors,
  lexical_dim) -> `last_hidden_state` (batch, length, d_model) and the keys and values that the decoder's layers attend
  to, `present.N.encoder.key` and `.value`, each (batch, heads, length, d_kv).
- decoder_with_past_model.onnx: `input_ids` int64 (batch, new), `encoder_attention_mask` (batch, length), the encoder's
  keys and values as `past_key_values.N.encoder.*` and those of the tokens before as `past_key_values.N.decoder.*`, each
  (batch, heads, past, d_kv) -> `logits` (batch, new, vocabulary) and `present.N.decoder.*`, `past + new` long.

Names are those of optimum. Its two decoders are one here, since the encoder makes what the first of them is there for.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import cached_file

from ..configuration_t5fusion import T5FusionConfig
from ..modeling_t5fusion import T5WithFusion, check_placeholders, check_vectors
from . import doors

ENCODER, DECODER = "encoder_model.onnx", "decoder_with_past_model.onnx"
LOGITS = "onnx_reference.safetensors"  # what torch makes of the bundle's reference, in fp32 whatever the model is in
DATA = "_data"  # ends the name of the file beside a graph that holds its weights, where one file would be too large
LARGEST = 2**31 - 2**24  # bytes of weights in one file: a protobuf, graph and all, ends at 2 GiB
NOWHERE = 2**31  # an index that no vector has
BOUND = 1e-4  # of the largest logit: how far those of onnxruntime may lie from those of torch


def need(*packages: str) -> None:
    """ImportError, naming the extra, where one of the packages is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX graphs need {' and '.join(missing)}: `pip install 't5fusion[onnx]'`.")


class EncoderGraph(nn.Module):
    """What encoder_model.onnx computes.

    It raises nothing by itself, so vectors and placeholders that disagree become an index that is out of bounds, at
    which onnxruntime stops: a graph that went on would leave vectors out in silence.
    """

    def __init__(self, model: T5WithFusion):
        super().__init__()
        self.encoder = model.encoder
        self.attentions = nn.ModuleList(block.layer[1].EncDecAttention for block in model.decoder.block)

    def forward(self, input_ids, attention_mask, lexical_embeds):
        embeds = self.embed(input_ids, lexical_embeds)
        hidden = self.encoder(inputs_embeds=embeds, attention_mask=attention_mask).last_hidden_state
        kept = [
            project(hidden).unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)
            for attention in self.attentions
            for project in (attention.k, attention.v)
        ]
        return hidden, *kept

    def embed(self, input_ids, lexical_embeds):
        """`LexicalEncoder.embed`, with an index for each place where that one looks at numbers."""
        is_placeholder = input_ids == self.encoder.config.lexical_token_id
        tokens = self.encoder.embed_tokens(input_ids.masked_fill(is_placeholder, 0))
        lexical_embeds = nn.functional.pad(lexical_embeds, (0, 0, 1, 0))  # vector 0: what is before the first
        order = is_placeholder.cumsum(1)
        used = ((lexical_embeds != 0).any(-1) * torch.arange(lexical_embeds.shape[1])).amax(1, keepdim=True)
        order = order.masked_fill(used > order[:, -1:], NOWHERE)
        vectors = self.encoder.fusion(lexical_embeds)
        # not take_along_dim, whose sizes torch.export would fix to those of the example
        in_place = vectors.gather(1, order.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))
        return torch.where(is_placeholder.unsqueeze(-1), in_place, tokens)


class DecoderGraph(nn.Module):
    """What decoder_with_past_model.onnx computes; `past` is a flat list, in the order of `past_names`."""

    def __init__(self, model: T5WithFusion):
        super().__init__()
        self.model = model

    def forward(self, input_ids, encoder_attention_mask, past):
        cache = as_cache(past)
        length = past[2][:, 0, :, :1]  # (batch, length, 1): of the encoder's states, which are not read, only the sizes
        output = self.model(
            decoder_input_ids=input_ids,
            attention_mask=encoder_attention_mask,
            encoder_outputs=BaseModelOutput(last_hidden_state=length),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, *(part for layer in cache.self_attention_cache for part in layer[:2])


def past_names(layers: int, kinds=("decoder", "encoder"), stem: str = "past_key_values") -> list[str]:
    """Names of the keys and values, layer by layer: by default all that the decoder takes."""
    return [f"{stem}.{layer}.{kind}.{part}" for layer, kind, part in product(range(layers), kinds, ("key", "value"))]


def as_cache(past: list[torch.Tensor]) -> EncoderDecoderCache:
    """The cache of transformers that holds `past`, a tensor for each of `past_names`."""
    layers = [past[i : i + 4] for i in range(0, len(past), 4)]
    own, encoder = ([tuple(layer[part]) for layer in layers] for part in (slice(0, 2), slice(2, 4)))
    return EncoderDecoderCache(DynamicCache(own), DynamicCache(encoder))


def write_graphs(folder: Path, model: T5WithFusion | PeftModel, reference: Path) -> None:
    """Writes the two graphs, the same bytes for the same model, and what they are to make of the reference's inputs.

    Args:
        model: is in fp32, and without its adapter, thereafter.
        reference: the bundle's reference.safetensors.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: the adapter is none that can be folded into weights.
    """
    need("onnx", "onnxscript")
    import onnx

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")  # nor need they be
        model = fold(model.float()).eval()
    model.set_attn_implementation("eager")
    for graph, name in ((trace_encoder(model), ENCODER), (trace_decoder(model), DECODER)):
        save(graph, folder / name)
        onnx.checker.check_model(folder / name, full_check=True)
    opened = doors.Reference(str(reference))
    logits = doors.forced(model, opened.inputs, opened.tensors["written"])[..., opened.tensors["columns"]]
    save_file({"logits": logits.contiguous()}, folder / LOGITS)


def fold(model: T5WithFusion | PeftModel) -> T5WithFusion:
    """The model with its adapter, if it has one, folded into its weights; ValueError where that cannot be."""
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"a {model.active_peft_config.peft_type.value} adapter is made of inputs, which cannot be folded into the "
            "weights of ONNX graphs. Leave out --format onnx."
        )
    return model.merge_and_unload()


# The sizes of an example stand for any, if each is 2 or more and no two of a graph are the same by chance.


def trace_encoder(model: T5WithFusion):
    """encoder_model.onnx as an `onnx_ir.Model`."""
    ids, mask = (torch.ones(2, 7, dtype=torch.int64) for _ in range(2))
    rows = {0: "batch", 1: "length"}
    return trace(
        EncoderGraph(model),
        {"input_ids": ids, "attention_mask": mask, "lexical_embeds": torch.zeros(2, 3, model.config.lexical_dim)},
        [rows, rows, {0: "batch", 1: "vectors"}],
        ["last_hidden_state", *past_names(model.config.num_decoder_layers, ["encoder"], "present")],
    )


def trace_decoder(model: T5WithFusion):
    """decoder_with_past_model.onnx as an `onnx_ir.Model`."""
    layers, heads, width = model.config.num_decoder_layers, model.config.num_heads, model.config.d_kv
    lengths = {name: ("past", 5) if ".decoder." in name else ("length", 7) for name in past_names(layers)}
    past = {name: torch.zeros(2, heads, number, width) for name, (_, number) in lengths.items()}
    ids, mask = (torch.ones(2, length, dtype=torch.int64) for length in (3, 7))
    return trace(
        DecoderGraph(model),
        {"input_ids": ids, "encoder_attention_mask": mask, "past": past},
        [{0: "batch", 1: "new"}, {0: "batch", 1: "length"}, [{0: "batch", 2: word} for word, _ in lengths.values()]],
        ["logits", *past_names(layers, ["decoder"], "present")],
    )


def trace(module: nn.Module, inputs: dict[str, Any], shapes: list, outputs: list[str]):
    """The module as an `onnx_ir.Model`, with nothing in it of where it was made.

    Args:
        inputs: an example of each argument; of one that is itself a dict, the names and what the list of them holds.
        shapes: for each argument, the names of its dynamic dimensions.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    groups = {name: value if isinstance(value, dict) else {name: value} for name, value in inputs.items()}
    arguments = tuple(list(value.values()) if isinstance(value, dict) else value for value in inputs.values())
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), arguments, dynamo=True, verbose=False, dynamic_shapes=tuple(shapes),
            input_names=[name for group in groups.values() for name in group], output_names=outputs,
        )  # fmt: skip
    assert program is not None  # for the type checker: it is None for the exporter before dynamo
    model = program.model
    ClearMetadataAndDocStringPass()(model)  # of nodes: among it, the stack that each came from
    values = [value for node in model.graph for value in node.outputs]
    for value in (*values, *model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Warnings of the exporter about itself are kept off the screen: names that are used twice, torchvision."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def save(graph, file: Path) -> None:
    """Writes an `onnx_ir.Model`, in one file if it fits in."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    onnx_ir.save(graph, file, external_data=f"{file.name}{DATA}" if size > LARGEST else None)


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
    opened, expected = doors.Reference(str(reference)), load_file(folder / LOGITS)["logits"]
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
