"""The doors that a reader may load a model by, each opened and compared with the reference that the model carries.

It is run as a script, `python reader_check.py SPEC`, and needs torch, transformers and peft but not this package. SPEC
is a JSON file (see `main`). The script prints one line of JSON for each door.
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

CALLED = "the processor, called as in the card"
ONCE_PUSHED = "AutoPeftModelForSeq2SeqLM, as from the Hub once pushed"


class Untried(Exception):
    """A door needs what this machine has not, or cannot reach; nothing is known of the model."""


class Hidden:
    """An import finder that lets no one find this package."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "t5fusion":
            raise ModuleNotFoundError(f"No module named {name!r} (hidden, as it is on a reader's machine)")


def environment() -> dict[str, str]:
    """What the last bit of a product depends on: torch's build, the processor's type, the number of threads."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        names = ("vendor_id", "cpu family", "model", "stepping")
        processor = " ".join([processor, *(fields[name] for name in names if name in fields)])
    return {"torch": torch.__version__, "processor": processor, "threads": str(torch.get_num_threads())}


def align(model: Any) -> Any:
    """Each weight in memory that torch has laid out: where a file's bytes lie changes the last bit of a product."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


@torch.no_grad()
def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What greedy decoding writes, int64 (rows, length), and the logits of it, (rows, length, vocabulary)."""
    for part in (model, model.get_encoder(), model.get_decoder()):  # 5.17 leaves the two as they were
        part.set_attn_implementation("eager")  # the one whose last bits all releases of transformers agree in
    written = model.generate(**inputs, max_new_tokens=12, do_sample=False, num_beams=1)
    return written, forced(model, inputs, written)


@torch.no_grad()
def forced(model: Any, inputs: dict[str, torch.Tensor], written: torch.Tensor) -> torch.Tensor:
    """Logits along a text that is given, (rows, length, vocabulary)."""
    return model(**inputs, decoder_input_ids=written).logits


def digest(logits: torch.Tensor) -> str:
    """SHA-256 of the logits' bytes, as float32."""
    return hashlib.sha256(logits.float().contiguous().numpy().tobytes()).hexdigest()


def tolerance(model: Any, largest: float) -> float:
    """How far logits of size `largest` may lie apart on another processor.

    Each of the `layers` times `width` products that a logit sums up over is rounded to half a unit in the last place of
    the dtype; the errors add up like a random walk, hence the root (Higham, Accuracy and Stability, 2002, 2.8).
    """
    config = model.config
    steps = (config.num_layers + config.num_decoder_layers) * config.d_model
    return torch.finfo(model.dtype).eps * steps**0.5 * largest


class Doors:
    """The doors to one model; each method opens one, and raises what transformers or peft raise where it is shut."""

    def __init__(self, spec: dict):
        self.name = spec["name"]
        self.has_adapter = spec["adapter"]
        self.place = {"revision": spec["revision"]} if spec.get("revision") else {}
        self.dtype = {"dtype": getattr(torch, spec["dtype"])} if spec.get("dtype") else {}
        self.backbone, self.backbone_revision = spec.get("backbone"), spec.get("backbone_revision")
        self.base, self.other = spec.get("base"), spec.get("other") or self.name
        self.pushed = spec.get("pushed")

    def load(self, auto, name=None, **place):
        options = self.dtype if "Model" in auto.__name__ else {}
        return auto.from_pretrained(name or self.name, trust_remote_code=True, **options, **(place or self.place))

    def plain(self):
        """`T5WithFusion("backbone")`, by the class that travels with the model."""
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        fused = get_class_from_dynamic_module("modeling_t5fusion.T5WithFusion", self.name, **self.place)
        lexical_dim = self.config().lexical_dim
        return fused(self.backbone, revision=self.backbone_revision, lexical_dim=lexical_dim, **self.dtype)

    def config(self):
        from transformers import AutoConfig

        return self.load(AutoConfig)

    def tokenizer(self):
        from transformers import AutoTokenizer

        return self.load(AutoTokenizer)

    def processor(self):
        from transformers import AutoProcessor

        return self.load(AutoProcessor)

    def called(self):
        """The inputs that the card's example makes, with vectors of a text where the recipe says how they are made."""
        processor = self.processor()
        brought = {}
        if processor.lexical_source != "none" and not processor.lexical_encoder:
            brought = {"lexical_embeds": torch.randn(1, processor.lexical_dim)}
        elif processor.lexical_source == "given":
            brought = {"lexical_texts": ["what the vector is made of"]}
        try:
            return processor(["app_config"], **brought)
        except ImportError as error:
            raise Untried(f"not tried: {error}") from error
        except OSError as error:
            if is_not_on_the_hub(error):
                raise
            raise Untried(f"not tried: {error}") from error

    def auto_model(self):
        from transformers import AutoModel

        return self.load(AutoModel)

    def one_line(self):
        from transformers import AutoModelForSeq2SeqLM

        return self.load(AutoModelForSeq2SeqLM)

    def auto_peft(self):
        from peft import AutoPeftModelForSeq2SeqLM

        return self.load(AutoPeftModelForSeq2SeqLM)

    def auto_peft_once_pushed(self):
        """By a copy that names itself as its base, as `push` makes the repository do."""
        from peft import AutoPeftModelForSeq2SeqLM

        return self.load(AutoPeftModelForSeq2SeqLM, self.pushed)

    def peft_over(self, model):
        from peft import PeftModel

        return PeftModel.from_pretrained(model, self.name, **self.place)

    def peft_over_one_line(self):
        return self.peft_over(self.one_line())

    def peft_over_plain(self):
        return self.peft_over(self.plain())

    def peft_over_base(self):
        from transformers import AutoModelForSeq2SeqLM

        return self.peft_over(self.load(AutoModelForSeq2SeqLM, self.base, revision="main"))

    def load_adapter(self):
        model = self.plain()
        model.load_adapter(self.name, adapter_kwargs=self.place)
        return model

    def second_adapter_and_back(self):
        model = self.peft_over_plain()
        model.load_adapter(self.other, "second")
        model.set_adapter("second")
        model.set_adapter("default")
        return model

    def all(self) -> dict:
        """The doors that this kind of model has, by the name that a reader knows them by."""
        doors = {
            "AutoConfig": self.config,
            "AutoTokenizer": self.tokenizer,
            "AutoProcessor": self.processor,
            CALLED: self.called,
            "AutoModel": self.auto_model,
            "AutoModelForSeq2SeqLM": self.one_line,
        }
        if self.has_adapter:
            doors["AutoPeftModelForSeq2SeqLM"] = self.auto_peft
            if self.pushed:
                doors[ONCE_PUSHED] = self.auto_peft_once_pushed
            doors["PeftModel over AutoModelForSeq2SeqLM"] = self.peft_over_one_line
            if self.backbone:
                doors["PeftModel over T5WithFusion(backbone)"] = self.peft_over_plain
                doors["T5WithFusion(backbone).load_adapter"] = self.load_adapter
                doors["PeftModel.load_adapter of a second, and back"] = self.second_adapter_and_back
            if self.base:
                doors["PeftModel over the base repository"] = self.peft_over_base
        return doors


class Reference:
    """Inputs, and what the trained model made of them; `check` compares what came through a door."""

    def __init__(self, file: str):
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            # copied, for the same reason as weights are aligned
            self.tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118, no dict
            self.facts = json.loads(opened.metadata()["facts"])
        self.inputs = {
            name.removeprefix("inputs."): tensor for name, tensor in self.tensors.items() if name.startswith("inputs.")
        }

    def check(self, opened) -> str:
        """In what way it holds; ValueError where it does not."""
        if isinstance(opened, Mapping):
            return self._check_call(opened)
        if isinstance(opened, torch.nn.Module):
            return self._check_model(align(opened))
        if hasattr(opened, "lexical_token_id") and hasattr(opened, "model_type"):
            return self._agree("model_type", opened.model_type, "t5_fusion")
        if hasattr(opened, "tokenizer"):
            found = opened(self.facts["texts"], lexical_embeds=self.inputs["lexical_embeds"])
            wrong = [name for name, value in self.inputs.items() if not torch.equal(found[name], value)]
            return self._agree("inputs that differ", wrong, [])
        return self._agree(
            "texts", opened.batch_decode(self.tensors["written"], skip_special_tokens=True), self.facts["written"]
        )

    def _check_call(self, inputs) -> str:
        """Whether vectors that a call made are like those of the reference."""
        if "lexical_embeds" not in inputs:
            return "no vectors, as its `lexical_source` says"
        vectors, width = inputs["lexical_embeds"], self.inputs["lexical_embeds"].shape[-1]
        self._agree("shape of the vectors", tuple(vectors.shape), (1, width))
        self._agree("vectors that are not numbers", int((~torch.isfinite(vectors)).sum()), 0)
        return f"makes inputs with a vector of {width} numbers"

    def _agree(self, what, found, expected) -> str:
        if found != expected:
            raise ValueError(f"{what}: {found!r}, expected {expected!r}")
        return "equal"

    def _check_model(self, model) -> str:
        written, logits = outputs(model, self.inputs)
        here = environment()
        same = torch.equal(written, self.tensors["written"])
        if same and digest(logits) == self.facts["digest"]:
            return "to the bit"
        elsewhere = ", ".join(f"{name} {self.facts['environment'][name]}, here {here[name]}" for name in here
                              if here[name] != self.facts["environment"][name])  # fmt: skip
        if not same:
            logits = forced(model, self.inputs, self.tensors["written"])
        found = logits.float()[..., self.tensors["columns"]]
        apart = float((found - self.tensors["logits"]).abs().max())
        bound = tolerance(model, float(self.tensors["logits"].abs().max()))
        if not apart <= bound:  # NaN is not either
            raise ValueError(f"logits lie {apart:.3g} apart, at most {bound:.3g} is to be expected: another model")
        if not elsewhere:
            raise ValueError(f"logits lie {apart:.3g} apart, where the same processor and torch give the same bits")
        return f"within {bound:.2g} ({apart:.2g}; the reference was made elsewhere: {elsewhere})"


def is_not_on_the_hub(error: BaseException | None) -> bool:
    """Whether it was caused by the Hub's word that there is no such repository."""
    while error is not None:
        if type(error).__name__ == "RepositoryNotFoundError":
            return True
        error = error.__cause__ or error.__context__
    return False


def one_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def main() -> None:
    """SPEC: name, adapter (whether it holds one), reference; unpushed_base (`naming_t5fusion.UNPUSHED_BASE`).

    And perhaps: revision, dtype, backbone, backbone_revision, base, other, hide; pushed, which is a copy that names
    itself as its base.
    """
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec.get("hide", True):
        sys.meta_path.insert(0, Hidden())
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    reference = Reference(spec["reference"])
    for name, open_door in Doors(spec).all().items():
        try:
            found = {"held": True, "how": reference.check(open_door())}
        except Exception as error:  # whatever a library raises is what a reader would see
            found = {"held": False, "how": one_sentence(error)}
            if spec["unpushed_base"].partition(";")[0] in str(error):
                found["refused"] = spec["unpushed_base"]
            elif isinstance(error, Untried):
                found["refused"] = str(error)
        print(json.dumps({"door": name, **found}), flush=True)


if __name__ == "__main__":
    main()
