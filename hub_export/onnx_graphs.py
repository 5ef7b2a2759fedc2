"""Write a fused model as ONNX graphs.

There are two graphs. All weights are fp32, with an adapter merged. The sizes `batch`, `length`, `vectors`, `new` and
`past` may differ from call to call, and `vectors` and `past` may be 0. The config sets the other sizes.

- encoder_model.onnx: `input_ids` and `attention_mask`, int64 (batch, length), and `lexical_embeds`, float32 (batch,
  vectors, lexical_dim) -> `last_hidden_state` (batch, length, d_model), and the keys and values that the decoder's
  layers attend to, `present.N.encoder.key` and `.value`, each (batch, heads, length, d_kv). With several kinds of
  vectors, `lexical_embeds` is for the first, and `lexical_embeds.KIND` for each other.
- decoder_with_past_model.onnx: `input_ids`, int64 (batch, new), `encoder_attention_mask` (batch, length), the encoder's
  keys and values as `past_key_values.N.encoder.*`, the keys and values of earlier tokens as
  `past_key_values.N.decoder.*`, each (batch, heads, past, d_kv) -> `logits` (batch, new, vocabulary) and
  `present.N.decoder.*`, `past + new` long.

The names follow optimum. Optimum has two decoders, and here one is enough, because the encoder's graph computes
the keys and values that optimum's first decoder would.
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
from safetensors.torch import save_file
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ..configuration_t5fusion import T5FusionConfig
from ..kinds_t5fusion import VectorKind
from ..modeling_t5fusion import T5WithFusion
from .reader_check import Reference
from .reference import REFERENCE, one_thread

ENCODER, DECODER = "encoder_model.onnx", "decoder_with_past_model.onnx"
LOGITS = "onnx_reference.safetensors"  # torch's logits in fp32 for the inputs of the bundle's reference
DATA = "_data"  # suffix of the file beside a graph that holds its weights, if one file would be too large
MAX_WEIGHTS = 2**31 - 2**24  # bytes in one file: a protobuf holds 2 GiB at most, and the graph needs some of that
OUT_OF_BOUNDS = 2**31  # an index that no vector has


def check_installed(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        ImportError: One is missing. The message names the extra that installs it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX graphs need {' and '.join(missing)}: `pip install 't5fusion[onnx]'`.")


class EncoderGraph(nn.Module):
    """The computation of encoder_model.onnx.

    A graph cannot raise errors. If vectors and placeholders disagree, it computes an index that is out of bounds, where
    onnxruntime stops. Otherwise it would leave out vectors silently.
    """

    def __init__(self, model: T5WithFusion):
        super().__init__()
        self.encoder = model.encoder
        self.attentions: Any = nn.ModuleList(block.layer[1].EncDecAttention for block in model.decoder.block)

    def forward(self, input_ids, attention_mask, lexical_embeds: list):
        embeds = self.embed(input_ids, lexical_embeds)
        hidden = self.encoder(inputs_embeds=embeds, attention_mask=attention_mask).last_hidden_state
        keys_and_values = [
            project(hidden).unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)
            for attention in self.attentions
            for project in (attention.k, attention.v)
        ]
        return hidden, *keys_and_values

    def embed(self, input_ids, lexical_embeds: list):
        """Compute `LexicalEncoder.embed` by indices alone, because a graph cannot branch on numbers.

        Args:
            input_ids: int64 (batch, length).
            lexical_embeds: The vectors of each kind, float (batch, vectors, dim), in the order of the config.
        """
        first_id, kinds = self.encoder.config.lexical_token_id, self.encoder.kinds
        is_placeholder = input_ids == first_id
        for position in range(1, len(kinds)):
            is_placeholder = is_placeholder | (input_ids == first_id + position)
        embeds = self.encoder.embed_tokens(input_ids.masked_fill(is_placeholder, 0))
        for position, (name, kind) in enumerate(kinds.items()):
            embeds = self.put_in_place(embeds, input_ids == first_id + position, lexical_embeds[position], name, kind)
        return embeds

    def put_in_place(self, embeds, is_placeholder, vectors, name: str, kind: VectorKind):
        """Return embeddings (batch, length, d_model) with the vectors of one kind in place of its placeholders."""
        # Vector 0 stands for tokens before the first placeholder. A row's own vectors begin at 1.
        vectors = nn.functional.pad(vectors, (0, 0, 1, 0))
        count = is_placeholder.cumsum(1)
        # `used` is a row's number of vectors, without its padding of zeros. With fewer placeholders than these vectors
        # need, vectors would be left out, so all indices of the row are made invalid. With more placeholders than the
        # batch has vectors, an index is invalid already.
        used = ((vectors != 0).any(-1) * torch.arange(vectors.shape[1])).amax(1, keepdim=True)
        is_invalid = used * kind.tokens > count[:, -1:]
        if kind.tokens > 1:
            is_invalid = is_invalid | (count[:, -1:] % kind.tokens != 0)
        index = (count + (kind.tokens - 1)).masked_fill(is_invalid, OUT_OF_BOUNDS)
        projected = self.encoder.fusion(vectors, name)
        # With take_along_dim, torch.export would fix the sizes of the example.
        in_place = projected.gather(1, index.unsqueeze(-1).expand(-1, -1, projected.shape[-1]))
        return torch.where(is_placeholder.unsqueeze(-1), in_place, embeds)


class DecoderGraph(nn.Module):
    """The computation of decoder_with_past_model.onnx; `past` is a flat list, in the order of `past_names`."""

    def __init__(self, model: T5WithFusion):
        super().__init__()
        self.model = model

    def forward(self, input_ids, encoder_attention_mask, past):
        cache = as_cache(past)
        # The model reads only the sizes of the encoder's states, since their keys are in the cache: (batch, length, 1).
        stand_in = past[2][:, 0, :, :1]
        output = self.model(
            decoder_input_ids=input_ids,
            attention_mask=encoder_attention_mask,
            encoder_outputs=BaseModelOutput(last_hidden_state=stand_in),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, *(part for layer in cache.self_attention_cache for part in layer[:2])


def input_name(config: T5FusionConfig, kind: str) -> str:
    """Return the name of the input for a kind's vectors.

    It is `lexical_embeds` for the first kind, and `lexical_embeds.KIND` for every other kind.
    """
    return "lexical_embeds" if kind == next(iter(config.kinds)) else f"lexical_embeds.{kind}"


def past_names(layers: int, sides=("decoder", "encoder"), stem: str = "past_key_values") -> list[str]:
    """Return the names of keys and values, layer by layer. By default, these are all that the decoder takes."""
    return [f"{stem}.{layer}.{side}.{part}" for layer, side, part in product(range(layers), sides, ("key", "value"))]


def as_cache(past: list[torch.Tensor]) -> EncoderDecoderCache:
    """Return the cache of transformers that holds `past`, a tensor for each of `past_names`."""
    layers = [past[i : i + 4] for i in range(0, len(past), 4)]
    own, encoder = ([tuple(layer[part]) for layer in layers] for part in (slice(0, 2), slice(2, 4)))
    return EncoderDecoderCache(DynamicCache(own), DynamicCache(encoder))


@one_thread()  # so that the same model gives the same bytes
def write_graphs(bundle: Path, model: T5WithFusion | PeftModel) -> None:
    """Write the two graphs into a bundle, and the logits that they should give for the inputs of its reference.

    Args:
        bundle: The folder, which holds reference.safetensors already.
        model: The model. It is changed: cast to fp32, with its adapter merged.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: The adapter cannot be merged into the weights.
    """
    check_installed("onnx", "onnxscript")
    import onnx  # optional: the extra `onnx` installs it

    with warnings.catch_warnings():  # Graphs do not need tied embeddings.
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        model = merge_adapter(model.float()).eval()
    model.set_attn_implementation("eager")
    for graph, name in ((trace_encoder(model), ENCODER), (trace_decoder(model), DECODER)):
        save_graph(graph, bundle / name)
        onnx.checker.check_model(bundle / name, full_check=True)
    reference = Reference(bundle / REFERENCE)
    save_file({"logits": reference.kept_logits(model)}, bundle / LOGITS)


def merge_adapter(model: T5WithFusion | PeftModel) -> T5WithFusion:
    """Return the model with its adapter, if it has one, merged into its weights.

    Raises:
        ValueError: The adapter adds inputs instead of changing weights.
    """
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"a {model.active_peft_config.peft_type.value} adapter is made of inputs, which cannot be merged into the "
            "weights of ONNX graphs. Leave out --format onnx."
        )
    return model.merge_and_unload()


def trace_encoder(model: T5WithFusion):
    """Return encoder_model.onnx as an `onnx_ir.Model`."""
    ids, mask = (torch.ones(2, 7, dtype=torch.int64) for _ in range(2))
    rows = {0: "batch", 1: "length"}
    vectors = {input_name(model.config, name): torch.zeros(2, 3, kind.dim) for name, kind in model.config.kinds.items()}
    return trace(
        EncoderGraph(model),
        {"input_ids": ids, "attention_mask": mask, "lexical_embeds": vectors},
        [rows, rows, [{0: "batch", 1: f"vectors{position or ''}"} for position in range(len(vectors))]],
        ["last_hidden_state", *past_names(model.config.num_decoder_layers, ["encoder"], "present")],
    )


def trace_decoder(model: T5WithFusion):
    """Return decoder_with_past_model.onnx as an `onnx_ir.Model`."""
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
    """Return the module as an `onnx_ir.Model` without metadata, which would name files of this machine.

    Args:
        module: The computation.
        inputs: An example of each argument. For an argument that is a list, a dict: a name for each element.
        shapes: For each argument, the names of its dynamic dimensions.
        outputs: The names of the outputs.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # optional: onnxscript installs it

    groups = {name: value if isinstance(value, dict) else {name: value} for name, value in inputs.items()}
    arguments = tuple(list(value.values()) if isinstance(value, dict) else value for value in inputs.values())
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), arguments, dynamo=True, verbose=False, dynamic_shapes=tuple(shapes),
            input_names=[name for group in groups.values() for name in group], output_names=outputs,
        )  # fmt: skip
    assert program is not None  # For the type checker: only the exporter before dynamo returns None.
    model = program.model
    ClearMetadataAndDocStringPass()(model)  # The metadata of a node holds a stack trace.
    values = [value for node in model.graph for value in node.outputs]
    for value in (*values, *model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings. They are about its own names and about torchvision, not about the model."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def save_graph(graph, file: Path) -> None:
    """Write an `onnx_ir.Model`, in one file if its weights fit."""
    import onnx_ir  # optional: onnxscript installs it

    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    onnx_ir.save(graph, file, external_data=f"{file.name}{DATA}" if size > MAX_WEIGHTS else None)
