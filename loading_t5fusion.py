"""Where a fused model comes from: `FusedLoadingMixin` gives `T5WithFusion` its `from_pretrained` and `load_adapter`.

A name may stand for a plain T5, for a fused model with or without weights of its own, and for an adapter on either.
`locate` finds out which, and what lies beneath.
"""

import copy
import json
import os
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

from transformers import AutoTokenizer, MT5Config
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils.hub import extract_commit_hash

from .configuration_t5fusion import LEXICAL_TOKEN, T5FusionConfig
from .naming_t5fusion import EMBEDDED, FusedName, name_of_embedded, resolve_embedded, was_embedded
from .saving_t5fusion import WRAPPED

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
NO_ADAPTER = {"subfolder": "no-adapter-here"}  # keeps transformers from loading an adapter itself
NOTHING_LOADED: dict = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
PLAIN = ("t5", "mt5")  # the kinds of backbone: an mT5 is a T5 whose head is never scaled
FUSION_FIELDS = ("backbone", "backbone_revision", "lexical_dim", "lexical_token_id")
NOT_CHOICES = {  # fields of a config that say where it is from, or how it is loaded, and not what the model computes
    "_name_or_path", "adapter_beside", "architectures", "auto_map", "backbone", "backbone_revision", "dtype",
    "quantization_config", "torch_dtype", "transformers_version", "weights_from_backbone",
}  # fmt: skip


class FusedLoadingMixin:
    """Loading for a `PreTrainedModel` whose `encoder.fusion` a plain T5's weights do not hold."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, adapter_name="default", **kwargs):
        """Loads a fused model, with its adapter if it has one, or builds one from any plain T5.

        Args:
            pretrained_model_name_or_path: Hub id or folder; None where `state_dict` brings the weights. Of a plain T5,
                the fusion layer is made anew; its weights depend on the sizes and the backbone alone. `config.backbone`
                then names it, with its commit, and adapters name their base "T5WithFusion(ID@COMMIT)", as which no
                other class can load the plain T5 in its stead. Where the saved config says that the weights are those
                of its backbone, they are. Of an adapter, the base that it names is loaded beneath it.
            config: a `T5FusionConfig`, or the folder or id of one, to use in place of the saved one.
            adapter_name: the name of the adapter, where there is one.
            **kwargs: those of [`~transformers.PreTrainedModel.from_pretrained`], and fields of the config
                (`lexical_dim=768`). With a `quantization_config`, the fusion layer stays in fp32.

        Raises:
            ValueError: the checkpoint is neither a T5 nor a fused one, or it lacks the decoder, or the fusion layer it
                should hold; or `config` has no `lexical_dim`; or the backbone's tokenizer cannot be loaded; or
                `device_map` offloads a fusion layer that is yet to be made; or the adapter does not fit.
            OSError: a file cannot be had, be it the adapter that the config says is there.
        """
        if pretrained_model_name_or_path is None:  # the weights come as `state_dict`
            loaded = super().from_pretrained(None, *model_args, config=config, **kwargs)
            if not any(".fusion." in key for key in kwargs.get("state_dict") or ()):
                model = loaded[0] if kwargs.get("output_loading_info") else loaded
                model.encoder.fusion.reset_parameters(model.shared.weight)
            return loaded
        found = locate(pretrained_model_name_or_path, config, kwargs)
        config, kwargs = found.config, found.kwargs
        # by this, `__init__` knows what may be missing
        config.architectures = None if found.is_plain else [cls.__name__]
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            found.source, *model_args, config=config, output_loading_info=True, adapter_kwargs=NO_ADAPTER, **kwargs
        )
        lost = [key for key in info["missing_keys"] if ".fusion." in key]
        if any(key.startswith("decoder.") for key in info["missing_keys"]) and not wants_info:
            raise ValueError(
                f"the weights of {found.source} lack the decoder's, or some of them; expected encoder and decoder. "
                "Name the T5 that its encoder was taken from."
            )
        if lost and not wants_info:  # who asks what is missing, is told
            raise ValueError(
                f"{found.source} says it is a fused model, but its weights lack {', '.join(lost)}. "
                "Save it again with `model.save_pretrained`, or name a plain T5 to start from."
            )
        if found.is_plain or lost or any(".fusion." in str(key) for key in info["mismatched_keys"]):
            if model.encoder.fusion.norm.weight.is_meta:
                raise ValueError(
                    "`device_map` offloads the fusion layer, which a plain T5's weights do not hold. Keep "
                    "`encoder.fusion` on a device, or save the fused model and load that."
                )
            model.encoder.fusion.reset_parameters(model.shared.weight)
        if found.is_plain or found.choices:
            model.name_or_path = str(FusedName(name_of_embedded(found.source), found.commit, found.choices))
        else:
            model.loaded_commit = found.commit
        model.remember_loaded_weights()
        if found.adapter is not None:
            # so warns PEFT where its own classes load the same adapter on top (AutoPeftModel does), which is right
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute in the model")
            model.load_adapter(found.adapter, adapter_name, adapter_kwargs=found.adapter_hub)
        return (model, info) if wants_info else model

    def load_adapter(self, peft_model_id=None, adapter_name=None, *args, adapter_kwargs=None, **kwargs):
        """Loads a PEFT adapter as `PeftModel` does, to the bit, on every release of transformers; it is the active one.

        Releases before 5.20 leave the fusion layer of an adapter as it was, or fill it with NaN, and say nothing; and
        all leave a second one's inactive.

        Args:
            peft_model_id: Hub id or folder of the adapter.
            adapter_name: "default" by default.
            adapter_kwargs: `revision`, `token`, `subfolder`, ... of the adapter.
            others: as in [`~transformers.PreTrainedModel.load_adapter`], which takes over where weights come from
                memory or are swapped in place.

        Raises:
            ValueError: there is an adapter of this name already, or its weights do not fit this model, which then is
                as it was.
        """
        if adapter_kwargs == NO_ADAPTER:  # from `from_pretrained` of a release that does not look at the subfolder
            return SimpleNamespace(**NOTHING_LOADED, to_dict=NOTHING_LOADED.copy)
        ours = {"is_trainable", *HUB_KEYWORDS}
        if args or peft_model_id is None or getattr(self, "_hotswap_enabled", False) or not kwargs.keys() <= ours:
            return super().load_adapter(peft_model_id, adapter_name, *args, adapter_kwargs=adapter_kwargs, **kwargs)
        try:
            from peft import PeftConfig, inject_adapter_in_model
            from peft.functional import delete_adapter
            from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
            from peft.utils import ModulesToSaveWrapper, load_peft_weights, set_peft_model_state_dict
        except ImportError as error:
            raise ImportError(f"{peft_model_id} holds an adapter of peft: `pip install peft`.") from error

        name = adapter_name or "default"
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise ValueError(f"there is an adapter {name!r} already. Give another `adapter_name`.")
        is_trainable = kwargs.pop("is_trainable", False)
        hub = {key: value for key, value in (kwargs | (adapter_kwargs or {})).items() if key != "proxies"}
        adapter_config = PeftConfig.from_pretrained(peft_model_id, **hub)
        adapter_config.inference_mode = not is_trainable
        weights = load_peft_weights(str(peft_model_id), device=str(self.device), **hub)
        weights = {key.removeprefix("base_model.model."): value for key, value in weights.items()}  # of a PeftModel
        before = {key for key, _ in self.named_parameters()}
        inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        cast_adapter_dtype(self, name)  # to fp32, as PeftModel does, before the weights could lose digits
        try:
            loaded = set_peft_model_state_dict(self, weights, name)
            of_before = {key for key in loaded.missing_keys if before & {key, WRAPPED.sub("", key)}}
            absent = [key for key in loaded.missing_keys if f".{name}." in key and key not in of_before]
            if absent or loaded.unexpected_keys:
                raise KeyError(", ".join([*absent, *loaded.unexpected_keys][:3]))
        except (KeyError, RuntimeError) as error:
            delete_adapter(self, name, prefix=f"{adapter_config.peft_type.value.lower()}_")
            del self.peft_config[name]
            if not self.peft_config:
                del self.peft_config
                self._hf_peft_config_loaded = False
            cause = str(error.args[0]).strip().splitlines()[-1].strip()
            raise ValueError(
                f"the adapter {peft_model_id} does not fit this model ({cause}). Load it on the base that it was "
                "trained on, with the same `lexical_dim`."
            ) from error
        # not by transformers' own `set_adapter`: that of 5.24 wants a later peft than there is
        for module in self.modules():
            if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
                module.set_adapter(name)
        if not is_trainable:
            self.eval()
            self.requires_grad_(False)
        return loaded


@dataclass
class Found:
    """What `from_pretrained` is to load, and from where."""

    source: str | os.PathLike  # of the weights
    commit: str | None  # of the source, where that is on a Hub
    is_plain: bool  # they are a plain T5's, without a fusion layer
    config: T5FusionConfig
    choices: dict  # what the config, or the place in the repository, differs in from what the source's own name gives
    kwargs: dict  # for transformers
    adapter: str | os.PathLike | None
    adapter_hub: dict


def locate(name, config, kwargs: dict) -> Found:
    """Where the weights that `name` stands for are, its config, and the adapter that goes on top.

    What is absent by the Hub's word may as well be out of reach, so only the config says that weights are elsewhere.

    Raises:
        OSError: a config cannot be had, or an adapter of which one tells.
    """
    named = FusedName.parse(name)
    if named.plain != name or not os.path.isdir(name):  # a folder of that name is taken, unless an adapter names it
        named = named._replace(plain=resolve_embedded(named.plain))
    hub = named.hub | {key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs}
    adapter, adapter_hub = find_adapter(named.plain, hub, kwargs.pop("adapter_kwargs", None))
    if adapter == named.plain and (base := base_of(adapter, adapter_hub)) is not None:  # an adapter by itself
        named, hub = base._replace(plain=resolve_embedded(base.plain)), elsewhere(hub) | base.hub
    source = named.plain
    kwargs = named.fields | kwargs
    commit = commit_of(source, hub)
    hub |= {"revision": commit} if commit else {}  # the rest is of the same commit, whoever pushes meanwhile
    saved, _ = PretrainedConfig.get_config_dict(source, **hub)
    if saved.get("adapter_beside") and adapter is None:
        raise OSError(f"{source} holds an adapter, whose adapter_config.json cannot be had. Try again, with a network.")
    as_saved, token_chosen = copy.deepcopy(saved), config is not None or "lexical_token_id" in kwargs
    config, kwargs = fused_config(source, hub, saved, config, kwargs)
    choices = choices_of(config, source, hub, as_saved, token_chosen)
    if saved.get("weights_from_backbone"):
        source, commit = resolve_embedded(config.backbone), config.backbone_revision
        hub = elsewhere(hub) | {"revision": commit}
        saved, _ = PretrainedConfig.get_config_dict(source, **hub)
    kwargs = {key: value for key, value in kwargs.items() if key not in HUB_KEYWORDS} | hub
    return Found(source, commit, saved.get("model_type") in PLAIN, config, choices, kwargs, adapter, adapter_hub)


def choices_of(config: T5FusionConfig, source, hub: dict, saved: dict, token_chosen: bool) -> dict:
    """The fields of `config` that differ from what its checkpoint's `saved` config gives, and the subfolder, if any.

    Args:
        token_chosen: whether `lexical_token_id` was given. Of a plain T5 it then counts as a choice: what the T5's own
            tokenizer would give need not be known.
    """
    if not hasattr(config, "lexical_token_id"):  # no fused model's config, which the model itself refuses
        return {}
    token = {} if "lexical_token_id" in saved else {"lexical_token_id": config.lexical_token_id}
    default, _ = fused_config(source, hub, saved, None, dict(token))
    usual = json.loads(default.to_json_string(use_diff=False))
    chosen = json.loads(config.to_json_string(use_diff=False))
    choices = {key: value for key, value in chosen.items() if key not in NOT_CHOICES and usual.get(key) != value}
    return choices | (token if token_chosen else {}) | ({"subfolder": hub["subfolder"]} if hub.get("subfolder") else {})


def elsewhere(hub: dict) -> dict:
    """The Hub keywords that hold in another repository as well."""
    return {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}


def find_adapter(name, hub: dict, passed: dict | None) -> tuple[str | None, dict]:
    """Where the adapter is that belongs to `name`, or that an Auto class has found, and its Hub keywords; or None."""
    passed = dict(passed or {})
    adapter = passed.pop("_adapter_model_path", None)
    if adapter is None:
        passed = hub | passed
        adapter = name if find_adapter_config_file(name, **passed) is not None else None
    elif str(adapter) == str(name):  # its own base: of the same commit
        adapter, passed = name, hub | passed
    else:
        passed = elsewhere(hub) | passed
    return adapter, {key: value for key, value in passed.items() if key in HUB_KEYWORDS}


def base_of(adapter, hub: dict) -> FusedName | None:
    """The base that an adapter names; None where a config.json beside the adapter makes it a model itself."""
    missing = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(adapter, "config.json", **hub, **missing) is not None:
        return None
    with open(cached_file(adapter, "adapter_config.json", **hub), encoding="utf-8") as file:
        base = base_in(json.load(file))
    if was_embedded(base.plain, adapter):
        return base._replace(plain=EMBEDDED, commit=None)
    if base.plain and os.path.isabs(base.plain) and not os.path.exists(base.plain):
        raise OSError(
            f"the adapter {adapter} was trained on {base.plain}, a folder that is not there. Put it back, or name "
            "where it is now in `base_model_name_or_path` of adapter_config.json."
        )
    return base


def base_in(adapter_config: dict) -> FusedName:
    """The base that an adapter's config names, with its revision where the config has one."""
    base = FusedName.parse(adapter_config["base_model_name_or_path"])
    return base if base.commit else base._replace(commit=adapter_config.get("revision"))


def fused_config(name, hub: dict, saved: dict, config, kwargs: dict) -> tuple[T5FusionConfig, dict]:
    """The config to load `name` with, whose own says `saved`; and the keywords that are not fields of it."""
    kind = saved.get("model_type")
    if kind not in (*PLAIN, T5FusionConfig.model_type):
        raise ValueError(
            f"{name} is a model of type {kind!r}; expected 't5' (T5, T5 v1.1, FLAN-T5, ByT5, CodeT5 ...), 'mt5' or "
            f"{T5FusionConfig.model_type!r}."
        )
    if isinstance(config, (str, os.PathLike)):
        config = T5FusionConfig.from_dict(PretrainedConfig.get_config_dict(config, **elsewhere(hub))[0])
    if config is None:
        if kind == "mt5":  # what its config leaves out is not what T5's would
            saved = MT5Config.from_dict(saved).to_dict()
        if kind in PLAIN:
            saved["backbone"] = str(name_of_embedded(name))
            saved["backbone_revision"] = commit_of(name, hub)
            if "lexical_token_id" not in kwargs:
                saved["lexical_token_id"] = free_token_id(name, hub)
        saved |= {field: kwargs.pop(field) for field in FUSION_FIELDS if field in kwargs}  # the config checks them
        dtype = {field: kwargs.pop(field) for field in ("dtype", "torch_dtype") if field in kwargs}
        # not `from_pretrained`, which warns where a plain T5 becomes a fused one
        config, kwargs = T5FusionConfig.from_dict(saved, return_unused_kwargs=True, **kwargs)
        kwargs |= dtype  # in the config, "auto" would stand for a type
    config = copy.deepcopy(config)
    config.weights_from_backbone = config.adapter_beside = False  # of what is saved, not of a model in memory
    if kind in PLAIN and getattr(config, "backbone", None) is None:
        config.backbone, config.backbone_revision = str(name_of_embedded(name)), commit_of(name, hub)
    if kind == "mt5":
        config.scale_decoder_outputs = False  # whatever was said of its head
    return config, kwargs


def commit_of(backbone: str | os.PathLike, hub: dict) -> str | None:
    """The commit that a model's files are of; None for a folder. (Configs know theirs before 5.23 only.)

    Raises:
        OSError: its config.json cannot be had.
    """
    return None if os.path.isdir(backbone) else extract_commit_hash(cached_file(backbone, "config.json", **hub), None)


def free_token_id(backbone: str | os.PathLike, hub: dict) -> int | None:
    """The id that `<lexical>` has, or will have when added, in the backbone's tokenizer; None if there is none.

    Raises:
        ValueError: the tokenizer cannot be loaded.
    """
    if cached_file(backbone, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **hub) is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone, **hub)
    except (ImportError, ValueError) as error:  # a package is missing, or its file is of another kind
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the tokenizer of {backbone} cannot be loaded ({cause}), and so says no id for {LEXICAL_TOKEN}. If it is "
            "a `spiece.model` alone: `pip install sentencepiece`. Or give `lexical_token_id=`, its number of tokens."
        ) from error
    return tokenizer.get_vocab().get(LEXICAL_TOKEN, len(tokenizer))
