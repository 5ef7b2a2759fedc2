"""Load a model by each loading path that a reader may use, and compare it with the reference that its bundle carries.

This is a script, `python reader_check.py SPEC`. It needs torch, transformers and peft, but not this package. SPEC is a
JSON file (see `main`). The script prints one line of JSON for each loading path.

Functions import transformers and peft themselves, because `main` must hide this package before they are imported.
"""

import contextlib
import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

NEW_TOKENS = 12
BIT_FOR_BIT = "bit for bit"
CARD_EXAMPLE = "the processor, called as in the card"
PIPELINE = "pipeline(model=...), called with texts and vectors"
ONCE_PUSHED = "AutoPeftModelForSeq2SeqLM, as from the Hub once pushed"


class Untried(Exception):
    """A loading path needs something that this machine lacks or cannot reach. The model may be sound."""


class HidingFinder:
    """An import finder that hides this package."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "t5fusion":
            raise ModuleNotFoundError(f"No module named {name!r} (hidden, as it is on a reader's machine)")


def environment() -> dict[str, str]:
    """Return what the last bit of a product depends on: torch's build, the type of CPU, the number of threads."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        names = ("vendor_id", "cpu family", "model", "stepping")
        processor = " ".join([processor, *(fields[name] for name in names if name in fields)])
    return {"torch": torch.__version__, "processor": processor, "threads": str(torch.get_num_threads())}


def align(model: Any) -> Any:
    """Copy each weight to memory that torch aligns, and return the model in evaluation mode.

    The last bit of a product depends on the alignment of a weight. A weight that was read from a file keeps the
    alignment that it has there.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


@torch.no_grad()
def greedy_outputs(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids that greedy decoding writes, int64 (rows, length), and their logits (rows, length, vocabulary)."""
    # Only with eager attention do all releases of transformers agree in the last bit. Encoder and decoder are named,
    # because `set_attn_implementation` of transformers 5.17 does not reach them through the model.
    for part in (model, model.get_encoder(), model.get_decoder()):
        part.set_attn_implementation("eager")
    written = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
    return written, logits_along(model, inputs, written)


@torch.no_grad()
def logits_along(model: Any, inputs: dict[str, torch.Tensor], written: torch.Tensor) -> torch.Tensor:
    """Return the logits (rows, length, vocabulary) if the decoder is given the tokens `written`."""
    return model(**inputs, decoder_input_ids=written).logits


def digest(logits: torch.Tensor) -> str:
    """Return the SHA-256 of the logits' bytes, as float32."""
    return hashlib.sha256(logits.float().contiguous().numpy().tobytes()).hexdigest()


def tolerance(model: Any, largest: float) -> float:
    """Return by how much logits of size `largest` may differ on a different CPU.

    A logit sums up products, one for each layer and each dimension of its state. Each product is rounded to half a unit
    in the last place of the dtype. The errors add up like a random walk, hence the root (Higham, Accuracy and
    Stability, 2002, 2.8).
    """
    config = model.config
    products = (config.num_layers + config.num_decoder_layers) * config.d_model
    return torch.finfo(model.dtype).eps * products**0.5 * largest


class LoadingPaths:
    """The ways to load one model. Each method loads it in one way, and raises what transformers or peft raise."""

    def __init__(self, spec: dict):
        self.name = spec["name"]
        self.has_adapter = spec["adapter"]
        self.has_pipeline = spec.get("pipeline")
        self.hub_kwargs = {"revision": spec["revision"]} if spec.get("revision") else {}
        self.dtype_kwargs = {"dtype": getattr(torch, spec["dtype"])} if spec.get("dtype") else {}
        self.base_model, self.base_revision = spec.get("base_model"), spec.get("base_revision")
        self.fused_model = spec.get("fused_model")
        self.second_adapter = spec.get("second_adapter") or self.name
        self.pushed = spec.get("pushed")

    def load(self, auto, name=None, **hub_kwargs):
        """Load this model, or the model that `name` and `hub_kwargs` name, by one of the Auto classes."""
        dtype_kwargs = self.dtype_kwargs if "Model" in auto.__name__ else {}
        return auto.from_pretrained(
            name or self.name, trust_remote_code=True, **dtype_kwargs, **(hub_kwargs or self.hub_kwargs)
        )

    def untuned_model(self):
        """Build `T5WithFusion("base model")`, by the class that travels with the model."""
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        fused = get_class_from_dynamic_module("modeling_t5fusion.T5WithFusion", self.name, **self.hub_kwargs)
        config = self.config()
        # A bundle of earlier code has one kind of vectors, and its code does not know `vectors`.
        kinds = getattr(config, "vectors", None)
        vector_fields = {"vectors": kinds} if kinds else {"lexical_dim": config.lexical_dim}
        return fused(self.base_model, revision=self.base_revision, **vector_fields, **self.dtype_kwargs)

    def config(self):
        from transformers import AutoConfig

        return self.load(AutoConfig)

    def tokenizer(self):
        from transformers import AutoTokenizer

        return self.load(AutoTokenizer)

    def processor(self):
        from transformers import AutoProcessor

        return self.load(AutoProcessor)

    def card_example(self):
        """Return the inputs that the card's example makes; the recipe's encoder, if any, makes the first kind."""
        processor = self.processor()
        has_encoder, kinds = bool(processor.lexical_encoder), getattr(processor, "kinds", {})
        given = {name: torch.randn(1, kind.dim) for name, kind in list(kinds.items())[has_encoder:]}
        vectors = {}
        if has_encoder and processor.lexical_source == "given":
            vectors["lexical_texts"] = ["what the vector is made of"]
        if len(kinds) > 1 and processor.lexical_source != "none":
            vectors["lexical_embeds"] = given
        elif not has_encoder and processor.lexical_source != "none":
            vectors["lexical_embeds"] = torch.randn(1, processor.lexical_dim)
        reads_text = "{text}" in processor.template or (has_encoder and processor.lexical_source == "text")
        texts = [["app_config"]] if reads_text or not vectors else []
        try:
            return processor(*texts, **vectors)
        except ImportError as error:
            raise Untried(f"not tried: {error}") from error
        except OSError as error:
            if is_not_on_the_hub(error):  # Readers cannot load the encoder either.
                raise
            raise Untried(f"not tried: {error}") from error

    def auto_model(self):
        from transformers import AutoModel

        return self.load(AutoModel)

    def auto_seq2seq(self):
        from transformers import AutoModelForSeq2SeqLM

        return self.load(AutoModelForSeq2SeqLM)

    def pipeline(self):
        from transformers import pipeline

        # Without a device, a pipeline takes the first GPU.
        return pipeline(model=self.name, trust_remote_code=True, device="cpu", **self.dtype_kwargs, **self.hub_kwargs)

    def auto_peft(self):
        from peft import AutoPeftModelForSeq2SeqLM

        return self.load(AutoPeftModelForSeq2SeqLM)

    def auto_peft_once_pushed(self):
        """Load a copy of the bundle that names itself as its base model, as a pushed repository does."""
        from peft import AutoPeftModelForSeq2SeqLM

        return self.load(AutoPeftModelForSeq2SeqLM, self.pushed)

    def peft_over(self, model):
        from peft import PeftModel

        return PeftModel.from_pretrained(model, self.name, **self.hub_kwargs)

    def peft_over_auto_seq2seq(self):
        return self.peft_over(self.auto_seq2seq())

    def peft_over_untuned(self):
        return self.peft_over(self.untuned_model())

    def peft_over_fused_model(self):
        from transformers import AutoModelForSeq2SeqLM

        return self.peft_over(self.load(AutoModelForSeq2SeqLM, self.fused_model, revision="main"))

    def load_adapter(self):
        model = self.untuned_model()
        model.load_adapter(self.name, adapter_kwargs=self.hub_kwargs)
        return model

    def second_adapter_and_back(self):
        model = self.peft_over_untuned()
        model.load_adapter(self.second_adapter, "second")
        model.set_adapter("second")
        model.set_adapter("default")
        return model

    def by_name(self) -> dict:
        """Return the loading paths that this kind of model has, by the name that a reader knows them by."""
        paths = {
            "AutoConfig": self.config,
            "AutoTokenizer": self.tokenizer,
            "AutoProcessor": self.processor,
            CARD_EXAMPLE: self.card_example,
            "AutoModel": self.auto_model,
            "AutoModelForSeq2SeqLM": self.auto_seq2seq,
        }
        if self.has_pipeline:
            paths[PIPELINE] = self.pipeline
        if self.has_adapter:
            paths["AutoPeftModelForSeq2SeqLM"] = self.auto_peft
            if self.pushed:
                paths[ONCE_PUSHED] = self.auto_peft_once_pushed
            paths["PeftModel over AutoModelForSeq2SeqLM"] = self.peft_over_auto_seq2seq
            if self.base_model:
                paths["PeftModel over T5WithFusion(base model)"] = self.peft_over_untuned
                paths["T5WithFusion(base model).load_adapter"] = self.load_adapter
                paths["PeftModel.load_adapter of a second, and back"] = self.second_adapter_and_back
            if self.fused_model:
                paths["PeftModel over the fused model"] = self.peft_over_fused_model
        return paths


def flat_inputs(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a model's inputs as tensors by name: `lexical_embeds.KIND` for the vectors of one of several kinds."""
    flat: dict[str, torch.Tensor] = {}
    for name, value in inputs.items():
        flat |= {f"{name}.{kind}": value[kind] for kind in value} if isinstance(value, Mapping) else {name: value}
    return flat


def read_inputs(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the model's inputs among the tensors of a reference: the reverse of `flat_inputs`."""
    inputs: dict[str, Any] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        argument, _, kind = rest.partition(".")
        if prefix == "inputs" and kind:
            inputs.setdefault(argument, {})[kind] = tensor
        elif prefix == "inputs":
            inputs[argument] = tensor
    return inputs


class Reference:
    """Inputs and the trained model's outputs for them; `check` compares what a loading path returned."""

    def __init__(self, file: str | Path):
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            # Clone the tensors for the reason that `align` gives.
            self.tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118, no dict
            self.facts = json.loads(opened.metadata()["facts"])
        self.inputs = read_inputs(self.tensors)

    def check(self, loaded) -> str:
        """Compare what a loading path returned with the reference, and return how they agree.

        Args:
            loaded: A config, tokenizer, processor, model or pipeline, or the inputs that a processor made.

        Raises:
            ValueError: They do not agree.
        """
        # Attributes tell what `loaded` is, because a bundle carries its own classes, which this script does not know.
        if isinstance(loaded, Mapping):
            return self._check_call(loaded)
        if isinstance(loaded, torch.nn.Module):
            return self._check_model(align(loaded))
        if hasattr(loaded, "postprocess"):
            return self._check_pipeline(loaded)
        if hasattr(loaded, "lexical_token_id") and hasattr(loaded, "model_type"):
            return self._check_equal("model_type", loaded.model_type, "t5_fusion")
        if hasattr(loaded, "tokenizer"):
            inputs = flat_inputs(loaded(self.facts["texts"], lexical_embeds=self.inputs["lexical_embeds"]))
            wrong = [name for name, value in flat_inputs(self.inputs).items() if not torch.equal(inputs[name], value)]
            return self._check_equal("inputs that differ", wrong, [])
        texts = loaded.batch_decode(self.tensors["written"], skip_special_tokens=True)
        return self._check_equal("texts", texts, self.facts["written"])

    def _check_call(self, inputs) -> str:
        """Check that the vectors that a call made have the right shape, and are numbers."""
        if "lexical_embeds" not in inputs:
            return "no vectors, as its `lexical_source` says"
        made, expected = (flat_inputs({"lexical_embeds": given["lexical_embeds"]}) for given in (inputs, self.inputs))
        widths = {name: vectors.shape[-1] for name, vectors in expected.items()}
        shapes = {name: tuple(vectors.shape) for name, vectors in made.items()}
        self._check_equal("shape of the vectors", shapes, {name: (1, width) for name, width in widths.items()})
        wrong = sum(int((~torch.isfinite(vectors)).sum()) for vectors in made.values())
        self._check_equal("vectors that are not numbers", wrong, 0)
        # The processor has the kinds in the order of the config; a file of tensors sorts them by name.
        return f"makes inputs with a vector of {' and one of '.join(str(widths[name]) for name in made)} numbers"

    def _check_pipeline(self, pipeline) -> str:
        """Check the pipeline's model and, if it agrees bit for bit, the texts, which may differ on a different CPU."""
        agreement = self._check_model(align(pipeline.model))
        vectors, texts = self.inputs["lexical_embeds"], self.facts["texts"]
        written = pipeline(texts, lexical_embeds=vectors, max_new_tokens=NEW_TOKENS, batch_size=len(texts))
        if agreement == BIT_FOR_BIT:
            self._check_equal("texts", [row["generated_text"] for row in written], self.facts["written"])
        return agreement

    def _check_equal(self, what, value, expected) -> str:
        """Return "equal", or raise a ValueError that names what differs."""
        if value != expected:
            raise ValueError(f"{what}: {value!r}, expected {expected!r}")
        return "equal"

    def kept_logits(self, model) -> torch.Tensor:
        """Return a model's logits along the reference's text, for those tokens of the vocabulary that it keeps."""
        return logits_along(model, self.inputs, self.tensors["written"])[..., self.tensors["columns"]].contiguous()

    def _check_model(self, model) -> str:
        """Compare the texts and the logits of a model: bit for bit, or within a bound on a different CPU or torch."""
        written, logits = greedy_outputs(model, self.inputs)
        if torch.equal(written, self.tensors["written"]) and digest(logits) == self.facts["digest"]:
            return BIT_FOR_BIT
        distance = float((self.kept_logits(model).float() - self.tensors["logits"]).abs().max())
        bound = tolerance(model, float(self.tensors["logits"].abs().max()))
        if not distance <= bound:  # true for NaN too
            raise ValueError(
                f"logits differ by {distance:.3g}; expected at most {bound:.3g}. Weights or code differ from the export"
            )
        there, here = self.facts["environment"], environment()
        differing = ", ".join(f"{name} {there[name]}, here {here[name]}" for name in here if here[name] != there[name])
        if not differing:
            raise ValueError(f"logits differ by {distance:.3g}, but the same CPU and torch should give the same bits")
        return f"within {bound:.2g} ({distance:.2g}; the reference was made elsewhere: {differing})"


def is_not_on_the_hub(error: BaseException | None) -> bool:
    """Return whether an error arose because the Hub said that there is no such repository."""
    while error is not None:
        if type(error).__name__ == "RepositoryNotFoundError":
            return True
        error = error.__cause__ or error.__context__
    return False


def one_sentence(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def try_path(load, reference: Reference, unpushed_base: str) -> dict[str, Any]:
    """Load a model and check it; return `passed`, the `detail`, and an `excuse` if the failure shows nothing wrong.

    The excuse is what to do about a base model that is not on a Hub yet, or what this machine lacks (see `Untried`).
    """
    try:
        return {"passed": True, "detail": reference.check(load())}
    except Exception as error:  # A reader would see it, whatever its type.
        result = {"passed": False, "detail": one_sentence(error)}
        # What follows the semicolon is advice, which differs between releases, and so between bundles.
        if unpushed_base.partition(";")[0] in str(error):
            result["excuse"] = unpushed_base
        elif isinstance(error, Untried):
            result["excuse"] = str(error)
        return result


def main() -> None:
    """Read SPEC and try each loading path of one model.

    Keys of SPEC:
        name: The folder or repository.
        adapter: Whether it holds an adapter.
        pipeline: Whether its config names a pipeline (false by default).
        reference: File of the reference.
        unpushed_base: `naming_t5fusion.UNPUSHED_BASE`.

    Optional keys:
        revision, dtype: As in `from_pretrained`.
        base_model, base_revision: The base model of the adapter.
        fused_model: Repository of the untuned fused model.
        second_adapter: Folder or repository of a second adapter on the same base model.
        pushed: Copy of the bundle that names itself as its base model.
        hide: Whether to hide this package (true by default).
    """
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec.get("hide", True):
        sys.meta_path.insert(0, HidingFinder())
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    reference = Reference(spec["reference"])
    for name, load in LoadingPaths(spec).by_name().items():
        print(json.dumps({"path": name} | try_path(load, reference, spec["unpushed_base"])), flush=True)


if __name__ == "__main__":
    main()
