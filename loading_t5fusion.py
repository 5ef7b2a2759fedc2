"""Loading of fused models: `FusedLoadingMixin` gives `T5WithFusion` its `from_pretrained` and `load_adapter`.

A name may stand for a base model, for a fused model with or without stored weights, or for an adapter.
`resolve_checkpoint` finds out what it stands for, and where the weights are.
"""

import copy
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from transformers import AutoTokenizer, MT5Config
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils.hub import extract_commit_hash

from .configuration_t5fusion import T5FusionConfig
from .kinds_t5fusion import LEXICAL_TOKEN
from .naming_t5fusion import (
    FIRST_EMBEDDED,
    HUB_KEYWORDS,
    FusedName,
    check_path,
    first_line,
    missing_in_one_sentence,
    name_to_record,
    recorded_base,
    resolve_embedded,
    was_embedded,
)
from .saving_t5fusion import PEFT_WRAPPERS

if TYPE_CHECKING:  # Type checkers then know the attributes of the model that this class is mixed into.
    from transformers import PreTrainedModel as Model
else:
    Model = object

FusedModel = TypeVar("FusedModel", bound="FusedLoadingMixin")
NameOrPath = str | os.PathLike[str]

SKIP_ADAPTER = {"subfolder": "no-adapter-here"}  # With these `adapter_kwargs`, transformers itself finds no adapter.
NOTHING_LOADED: dict[str, Any] = {
    "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": [],
}  # fmt: skip
BASE_MODEL_TYPES = ("t5", "mt5")  # An mT5 is a T5 with an unscaled head.
FUSION_FIELDS = ("backbone", "backbone_revision", "lexical_dim", "lexical_token_id", "vectors", "vector_dropout")
# Config fields that say where a model is from or how it is loaded, and so do not change what it computes.
NOT_CHOICES = {
    "_name_or_path", "adapter_beside", "architectures", "auto_map", "backbone", "backbone_revision", "custom_pipelines",
    "dtype", "quantization_config", "torch_dtype", "transformers_version", "weights_from_backbone",
}  # fmt: skip


class FusedLoadingMixin(Model):
    """Loading for a model with a fusion layer (`encoder.fusion`), which the weights of a base model do not include."""

    _hf_peft_config_loaded: bool  # whether an adapter is attached, without a `PeftModel`

    @overload
    @classmethod
    def from_pretrained(
        cls: type[FusedModel],
        pretrained_model_name_or_path: NameOrPath | None,
        *model_args: Any,
        config: PretrainedConfig | NameOrPath | None = ...,
        adapter_name: str = ...,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> FusedModel: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[FusedModel],
        pretrained_model_name_or_path: NameOrPath | None,
        *model_args: Any,
        config: PretrainedConfig | NameOrPath | None = ...,
        adapter_name: str = ...,
        output_loading_info: bool,
        **kwargs: Any,
    ) -> Any: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: NameOrPath | None,
        *model_args: Any,
        config: PretrainedConfig | NameOrPath | None = None,
        adapter_name: str = "default",
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a fused model, with its adapter if it has one, or build a fused model from a base model.

        A base model gets a new fusion layer, whose weights depend only on the sizes and on the base model. The config
        then names the base model and its commit (`config.backbone`, `config.backbone_revision`). Adapters record
        "T5WithFusion(ID@COMMIT)" as their base model, so that no other class loads the plain T5 in its place. For an
        adapter, this method first loads the base model that the adapter names.

        Args:
            pretrained_model_name_or_path: Hub id or folder of a base model, a fused model or an adapter; "tiny_t5_v2"
                for the base model inside the package; None if `state_dict` holds the weights.
            *model_args: Further positional arguments of the model's `__init__`.
            config: Config to use instead of the saved one, or the Hub id or folder of such a config.
            adapter_name: Name that the adapter gets, if there is one.
            output_loading_info: If true, return the pair of the model and a dict that lists, among others, the missing
                and the unexpected keys. Missing weights of the decoder or the fusion layer then raise no error.
            **kwargs: Keywords of [`~transformers.PreTrainedModel.from_pretrained`] (`dtype=torch.float32`,
                `device_map`, `revision`, `token`, ...) and config fields (`lexical_dim=768`, 384 by default;
                `lexical_token_id`; `dropout_rate`; ...). With a `quantization_config`, the fusion layer stays in fp32.

        Returns:
            The model, in eval mode and in the dtype that it was saved in.

        Raises:
            ValueError: The checkpoint is neither a T5 nor a fused model; its weights lack the decoder; a fused model's
                weights lack the fusion layer; `config` has no `lexical_dim`; the base model's tokenizer cannot be
                loaded; `device_map` offloads a fusion layer that has no weights yet; or the adapter does not fit.
            OSError: There is neither a folder of this name nor a repository within reach; or a file cannot be read, for
                example a file of an adapter that the config announces.
            ImportError: There is an adapter, and peft is not installed.
        """
        if pretrained_model_name_or_path is None:
            loaded = super().from_pretrained(
                None, *model_args, config=config, output_loading_info=output_loading_info, **kwargs
            )
            if not any(".fusion." in key for key in kwargs.get("state_dict") or ()):
                model = loaded[0] if output_loading_info else loaded
                model.encoder.fusion.reset_parameters(model.shared.weight)
            return loaded
        checkpoint = resolve_checkpoint(pretrained_model_name_or_path, config, kwargs)
        # `__init__` reads from `architectures` whether the weights may lack a fusion layer.
        checkpoint.config.architectures = None if checkpoint.is_base_model else [cls.__name__]
        with naming_unknown_argument(cls.__name__, checkpoint.config):
            model, info = super().from_pretrained(
                checkpoint.source,
                *model_args,
                config=checkpoint.config,
                output_loading_info=True,
                adapter_kwargs=SKIP_ADAPTER,
                **checkpoint.kwargs,
            )
        if not output_loading_info:  # Otherwise the caller gets the list of what is missing.
            check_complete(checkpoint.source, info["missing_keys"])
        model._finish_loading(checkpoint, info)
        if checkpoint.adapter is not None:
            # AutoPeftModel then loads the same adapter again on top, which is harmless, but PEFT warns about it.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute in the model")
            model.load_adapter(checkpoint.adapter, adapter_name, adapter_kwargs=checkpoint.adapter_hub_kwargs)
        return (model, info) if output_loading_info else model

    def _finish_loading(self, checkpoint: "ResolvedCheckpoint", info: dict[str, Any]) -> None:
        """Give the fusion layer its initial weights if none were loaded, and record where the model came from.

        Args:
            checkpoint: Where the weights came from.
            info: What `from_pretrained` of transformers reports: `missing_keys`, `mismatched_keys`, ...

        Raises:
            ValueError: The fusion layer has no weights yet, and `device_map` offloads it.
        """
        is_new = checkpoint.is_base_model or any(
            ".fusion." in str(key) for key in (*info["missing_keys"], *info["mismatched_keys"])
        )
        if is_new:
            if self.encoder.fusion.norm.weight.is_meta:
                raise ValueError(
                    "`device_map` offloads the fusion layer, which the weights of a base model do not include. Keep "
                    "`encoder.fusion` on a device, or save the fused model and load that."
                )
            self.encoder.fusion.reset_parameters(self.shared.weight)
        if checkpoint.is_base_model or checkpoint.choices:
            base_model = name_to_record(checkpoint.source)
            self.name_or_path = str(FusedName(base_model, checkpoint.commit, checkpoint.choices))
        else:
            self.loaded_commit = checkpoint.commit
        self.remember_loaded_weights()

    def load_adapter(
        self,
        peft_model_id: NameOrPath | None = None,
        adapter_name: str | None = None,
        *args: Any,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a PEFT adapter, with the same weights as `PeftModel` loads, and make it the active one.

        transformers' own method is not enough. Before release 5.20, it does not load the fusion layer of an adapter: it
        leaves the layer unchanged, or fills it with NaN, without a message. No release activates a second adapter.

        Args:
            peft_model_id: Hub id or folder of the adapter.
            adapter_name: Name that the adapter gets; None for "default".
            *args: Positional arguments of [`~transformers.PreTrainedModel.load_adapter`], which then takes over.
            adapter_kwargs: Hub keywords of the adapter: `revision`, `token`, `subfolder`, ...
            **kwargs: `is_trainable`, and Hub keywords. With any other keyword, without an id, or after
                `enable_peft_hotswap`, transformers' method takes over.

        Returns:
            An object that lists the `missing_keys` and the `unexpected_keys`.

        Raises:
            ValueError: The model already has an adapter of this name; or the new adapter's weights do not fit the
                model, and it is removed again (a table that was resized for it stays resized).
            ImportError: peft is not installed.
        """
        if adapter_kwargs == SKIP_ADAPTER:  # Some releases of transformers call this without reading the subfolder.
            return SimpleNamespace(**NOTHING_LOADED, to_dict=NOTHING_LOADED.copy)
        handled_keywords = {"is_trainable", *HUB_KEYWORDS}
        is_plain_call = not args and peft_model_id is not None and kwargs.keys() <= handled_keywords
        if not is_plain_call or getattr(self, "_hotswap_enabled", False):
            return super().load_adapter(peft_model_id, adapter_name, *args, adapter_kwargs=adapter_kwargs, **kwargs)
        is_trainable = kwargs.pop("is_trainable", False)
        hub_kwargs = kwargs | (adapter_kwargs or {})
        return self._attach_adapter(peft_model_id, adapter_name or "default", is_trainable, hub_kwargs)

    def _attach_adapter(
        self, peft_model_id: NameOrPath | None, name: str, is_trainable: bool, hub_kwargs: dict[str, Any]
    ) -> Any:
        """Attach a saved adapter to the model, as `load_adapter` describes.

        Args:
            peft_model_id: Hub id or folder of the adapter.
            name: Name that the adapter gets.
            is_trainable: Whether the adapter's weights will train.
            hub_kwargs: Hub keywords of the adapter.
        """
        peft = _import_peft(f"{peft_model_id} holds an adapter of peft")
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise ValueError(f"the model already has an adapter {name!r}. Pass a different `adapter_name`.")
        # huggingface_hub no longer takes `proxies`, although transformers does.
        hub_kwargs = {key: value for key, value in hub_kwargs.items() if key != "proxies"}
        adapter_config = peft.PeftConfig.from_pretrained(peft_model_id, **hub_kwargs)
        adapter_config.inference_mode = not is_trainable
        weights = peft.utils.load_peft_weights(str(peft_model_id), device=str(self.device), **hub_kwargs)
        # PEFT saves weights under the names that they have in a `PeftModel`.
        weights = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
        rows = _saved_rows(weights)
        # The table is resized first, because PEFT looks up the adapter's tokens in it when it attaches the adapter.
        if rows is not None and rows != self.shared.num_embeddings:
            self.resize_token_embeddings(rows, mean_resizing=False)
        _drop_tied_tokens(weights)
        names_before = {key for key, _ in self.named_parameters()}
        peft.inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        # Like PeftModel, cast the adapter to fp32 before its weights arrive, so that they lose no digits.
        peft.tuners.tuners_utils.cast_adapter_dtype(self, name)
        try:
            result = _fill_adapter(peft, self, name, weights, names_before)
        except (KeyError, RuntimeError) as error:
            _remove_adapter(peft, self, name, adapter_config.peft_type.value.lower())
            cause = str(error.args[0]).strip().splitlines()[-1].strip()
            raise ValueError(
                f"the adapter {peft_model_id} does not fit this model ({cause}). Load it on the base model that it was "
                "trained on, with the same `vectors` or `lexical_dim`."
            ) from error
        _activate_adapter(peft, self, name)
        if not is_trainable:
            self.eval()
            self.requires_grad_(False)
        return result


@contextmanager
def naming_unknown_argument(class_name: str, config: PretrainedConfig) -> Iterator[None]:
    """Name the class that the user called in an error about an unknown argument, and suggest a config field.

    transformers passes arguments that are no config fields on to T5's `__init__`, which refuses them.

    Raises:
        TypeError: An argument is unknown.
    """
    try:
        yield
    except TypeError as error:
        unknown = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        known = {*vars(config), *signature(T5FusionConfig).parameters}
        nearest = get_close_matches(unknown[1], sorted(known), 1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else "see the fields of T5FusionConfig."
        raise TypeError(f"{class_name} has no argument `{unknown[1]}`; {hint}") from error


def check_complete(source: NameOrPath, missing_keys: Any) -> None:
    """Check that the weights of a checkpoint lack nothing that a base model or a fused model must hold.

    Args:
        source: Hub id or folder of the checkpoint, for the message.
        missing_keys: Names of the weights that it lacks.

    Raises:
        ValueError: The decoder is missing, in whole or in part, or the fusion layer of a fused model is.
    """
    if any(key.startswith("decoder.") for key in missing_keys):
        raise ValueError(
            f"the weights of {source} lack some or all weights of the decoder; expected encoder and decoder. Pass the "
            "T5 that this encoder was taken from."
        )
    missing_fusion = [key for key in missing_keys if ".fusion." in key]
    if missing_fusion:
        raise ValueError(
            f"the config of {source} is that of a fused model, but the weights lack {', '.join(missing_fusion)}. "
            "Save the model again with `model.save_pretrained`, or pass a base model to start from."
        )


def _import_peft(purpose: str) -> Any:
    """Return the package peft, after importing its modules that this file uses.

    peft is optional: a model without an adapter loads without it. The imports stay inside a `try`, because transformers
    refuses to load remote code that imports a missing package elsewhere.

    Args:
        purpose: Why peft is needed, for the message.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        import peft
        import peft.functional
        import peft.tuners.tuners_utils
        import peft.utils
    except ImportError as error:
        raise ImportError(f"{purpose}, and peft is not installed. Type `pip install peft`.") from error
    return peft


def _saved_rows(weights: dict[str, Any]) -> int | None:
    """Return the number of rows of the embedding table that was saved with an adapter, or None if none was."""
    names = ("shared.weight", "shared.token_adapter.base_layer.weight")  # The second is for `trainable_token_indices`.
    return next((len(weights[name]) for name in names if name in weights), None)


def _drop_tied_tokens(weights: dict[str, Any]) -> None:
    """Remove the head's copy of the trained tokens from the weights, in place, if it equals the embedding table's.

    With `trainable_token_indices` and a saved table, PEFT saves the trained tokens of a tied head twice, but a model
    that it loads has no place for the second copy.
    """
    table, head = (f"{module}.token_adapter.trainable_tokens_delta" for module in ("shared", "lm_head"))
    if table in weights and head in weights and weights[table].equal(weights[head]):
        del weights[head]


def _fill_adapter(peft: Any, model: Any, name: str, weights: dict[str, Any], names_before: set[str]) -> Any:
    """Put weights into an adapter, and return PEFT's lists of missing and unexpected keys.

    Args:
        peft: The package.
        model: The model, with the adapter.
        name: Name of the adapter.
        weights: The adapter's weights by name.
        names_before: Names of the model's parameters before the adapter was attached.

    Raises:
        KeyError: Weights of the adapter are missing, or some weights belong to no part of it.
        RuntimeError: A weight has a different shape.
    """
    result = peft.utils.set_peft_model_state_dict(model, weights, name)
    # PEFT also lists the model's own weights as missing, some of them under the names that its wrappers give them.
    own_keys = {key for key in result.missing_keys if names_before & {key, PEFT_WRAPPERS.sub("", key)}}
    missing = [key for key in result.missing_keys if f".{name}." in key and key not in own_keys]
    if missing or result.unexpected_keys:
        names = {"missing": missing, "unexpected": result.unexpected_keys}
        raise KeyError("; ".join(f"{word}: {', '.join(each[:3])}" for word, each in names.items() if each))
    return result


def _remove_adapter(peft: Any, model: Any, name: str, peft_type: str) -> None:
    """Remove the adapter `name` from the model, and restore the layers that it replaced.

    Args:
        peft: The package.
        model: The model.
        name: Name of the adapter.
        peft_type: The adapter's type in lower case, such as "lora". The names of its weights begin with it.
    """
    peft.functional.delete_adapter(model, name, prefix=f"{peft_type}_")
    del model.peft_config[name]
    if not model.peft_config:
        del model.peft_config
        model._hf_peft_config_loaded = False


def _activate_adapter(peft: Any, model: Any, name: str) -> None:
    """Make `name` the active adapter. (`set_adapter` of transformers 5.24 needs a release of peft after 0.21.)"""
    for module in model.modules():
        if isinstance(module, (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.ModulesToSaveWrapper)):
            module.set_adapter(name)


@dataclass
class ResolvedCheckpoint:
    """What a name stands for: where its weights are, and which adapter belongs to them."""

    source: NameOrPath  # Hub id or folder of the weights
    commit: str | None  # commit of the source, if it is on a Hub
    is_base_model: bool  # whether the source is a plain T5, without a fusion layer
    config: T5FusionConfig
    choices: dict[str, Any]  # config fields that differ from the source's defaults, and its subfolder if it has one
    kwargs: dict[str, Any]  # keywords for transformers' `from_pretrained`
    adapter: NameOrPath | None  # Hub id or folder of the adapter
    adapter_hub_kwargs: dict[str, Any]  # Hub keywords of the adapter


def resolve_checkpoint(
    name: NameOrPath, config: PretrainedConfig | NameOrPath | None, kwargs: dict[str, Any]
) -> ResolvedCheckpoint:
    """Find the weights, the config and the adapter that `name` stands for.

    A missing file may only mean that the Hub is out of reach. So the saved config decides whether the weights are
    elsewhere, and whether there must be an adapter.

    Args:
        name: Hub id, folder, or name that an adapter recorded.
        config: Config to use instead of the saved one, or the Hub id or folder of such a config.
        kwargs: Keywords of `from_pretrained`: Hub keywords, config fields, and keywords of transformers. This function
            removes `adapter_kwargs` from them.

    Raises:
        OSError: There is neither a folder of this name nor a repository within reach; a config or another file cannot
            be read; or the config announces an adapter that cannot be read.
        ValueError: The checkpoint is neither a T5 nor a fused model.
    """
    named = FusedName.parse(name)
    # A folder that is called "tiny_t5_v2" wins over the embedded model, except in a name that an adapter recorded.
    if named.base_model != name or not os.path.isdir(name):
        named = named._replace(base_model=resolve_embedded(named.base_model))
    check_path(named.base_model)
    hub_kwargs = named.hub_kwargs | {key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs}
    is_local_only = bool(hub_kwargs.get("local_files_only"))
    with missing_in_one_sentence(named.base_model, is_local_only):
        adapter, adapter_hub_kwargs = find_adapter(named.base_model, hub_kwargs, kwargs.pop("adapter_kwargs", None))
    if adapter == named.base_model and (base := base_of_adapter(adapter, adapter_hub_kwargs)) is not None:
        named = base._replace(base_model=resolve_embedded(base.base_model))
        hub_kwargs = for_other_repository(hub_kwargs) | base.hub_kwargs
    source: NameOrPath = named.base_model
    kwargs = named.config_fields | kwargs
    with missing_in_one_sentence(source, is_local_only):
        commit = commit_of(source, hub_kwargs)
    if commit:  # Read all further files from this commit, even if someone pushes another one meanwhile.
        hub_kwargs |= {"revision": commit}
    saved, _ = PretrainedConfig.get_config_dict(source, **hub_kwargs)
    if saved.get("adapter_beside") and adapter is None:
        raise OSError(
            f"{source} holds an adapter, but its adapter_config.json cannot be read. Check the folder, or the network."
        )
    token_chosen = config is not None or "lexical_token_id" in kwargs
    fused, kwargs = fused_config(source, hub_kwargs, saved, config, kwargs)
    choices = choices_of(fused, source, hub_kwargs, saved, token_chosen)
    if saved.get("weights_from_backbone"):
        source, commit = resolve_embedded(fused.backbone), fused.backbone_revision
        hub_kwargs = for_other_repository(hub_kwargs) | {"revision": commit}
        with missing_in_one_sentence(source, is_local_only):
            saved, _ = PretrainedConfig.get_config_dict(source, **hub_kwargs)
    kwargs = {key: value for key, value in kwargs.items() if key not in HUB_KEYWORDS} | hub_kwargs
    is_base_model = saved.get("model_type") in BASE_MODEL_TYPES
    return ResolvedCheckpoint(source, commit, is_base_model, fused, choices, kwargs, adapter, adapter_hub_kwargs)


def choices_of(
    config: T5FusionConfig, source: NameOrPath, hub_kwargs: dict[str, Any], saved: dict[str, Any], token_chosen: bool
) -> dict[str, Any]:
    """Return the user's choices: fields of `config` that differ from the checkpoint's defaults, and the subfolder.

    Args:
        config: The config with which the model is loaded.
        source: Hub id or folder of the checkpoint.
        hub_kwargs: Hub keywords of the checkpoint.
        saved: The checkpoint's own config.json.
        token_chosen: Whether the caller gave `lexical_token_id`. For a base model it then counts as a choice, even if
            it equals the default, because finding the default would need the tokenizer.
    """
    if not hasattr(config, "lexical_token_id"):  # `T5WithFusion` refuses such a config, which is not a fused model's.
        return {}
    token = {} if "lexical_token_id" in saved else {"lexical_token_id": config.lexical_token_id}
    default, _ = fused_config(source, hub_kwargs, saved, None, dict(token))
    default_fields = json.loads(default.to_json_string(use_diff=False))
    fields = json.loads(config.to_json_string(use_diff=False))
    choices = {
        key: value for key, value in fields.items() if key not in NOT_CHOICES and default_fields.get(key) != value
    }
    subfolder = {"subfolder": hub_kwargs["subfolder"]} if hub_kwargs.get("subfolder") else {}
    return choices | (token if token_chosen else {}) | subfolder


def for_other_repository(hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the Hub keywords that hold for every repository: all but the revision and the subfolder."""
    return {key: value for key, value in hub_kwargs.items() if key not in ("revision", "subfolder")}


def find_adapter(
    name: NameOrPath, hub_kwargs: dict[str, Any], adapter_kwargs: dict[str, Any] | None
) -> tuple[NameOrPath | None, dict[str, Any]]:
    """Return the Hub id or folder of the adapter that belongs to `name`, or None; and the adapter's Hub keywords.

    Args:
        name: Hub id or folder of a checkpoint or of an adapter.
        hub_kwargs: Hub keywords of `name`.
        adapter_kwargs: Keywords that an Auto class passes. If the class has found an adapter, its path is among them.
    """
    passed = dict(adapter_kwargs or {})
    adapter = passed.pop("_adapter_model_path", None)
    if adapter is None:
        passed = hub_kwargs | passed
        adapter = name if find_adapter_config_file(name, **passed) is not None else None
    elif str(adapter) == str(name):  # The adapter lies beside the config, so it is at the same commit.
        adapter, passed = name, hub_kwargs | passed
    else:
        passed = for_other_repository(hub_kwargs) | passed
    return adapter, {key: value for key, value in passed.items() if key in HUB_KEYWORDS}


def base_of_adapter(adapter: NameOrPath, hub_kwargs: dict[str, Any]) -> FusedName | None:
    """Return the base model that an adapter names; None if a config.json beside the adapter says what to load.

    Raises:
        OSError: The base model is a folder that no longer exists.
    """
    no_error = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(adapter, "config.json", **hub_kwargs, **no_error) is not None:
        return None
    config_file: Any = cached_file(adapter, "adapter_config.json", **hub_kwargs)
    with open(config_file, encoding="utf-8") as file:
        base = recorded_base(json.load(file))
    if was_embedded(base.base_model, adapter):
        return base._replace(base_model=FIRST_EMBEDDED, commit=None)
    if base.base_model and os.path.isabs(base.base_model) and not os.path.exists(base.base_model):
        raise OSError(
            f"the adapter {adapter} was trained on {base.base_model}, a folder that does not exist. Put it back, or "
            "write its new path into `base_model_name_or_path` of adapter_config.json."
        )
    return base


def fused_config(
    name: NameOrPath,
    hub_kwargs: dict[str, Any],
    saved: dict[str, Any],
    config: Any,
    kwargs: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Return the config with which to load `name`, and the keywords that are not config fields.

    Args:
        name: Hub id or folder of the checkpoint.
        hub_kwargs: Hub keywords of the checkpoint.
        saved: The checkpoint's own config.json.
        config: Config to use instead, or the Hub id or folder of such a config, or None.
        kwargs: Keywords of `from_pretrained`, config fields among them.

    Raises:
        ValueError: The checkpoint is neither a T5 nor a fused model, or a field has a wrong value.
    """
    model_type = saved.get("model_type")
    if not saved:
        checkpoints = sorted(Path(name).glob("checkpoint-*"), key=os.path.getmtime)
        hint = f" Name a checkpoint in it, such as {checkpoints[-1]}." if checkpoints else ""
        raise ValueError(f"{name} holds neither config.json nor adapter_config.json; expected a saved model.{hint}")
    if model_type not in (*BASE_MODEL_TYPES, T5FusionConfig.model_type):
        raise ValueError(
            f"{name} is a model of type {model_type!r}; expected 't5' (T5, T5 v1.1, FLAN-T5, ByT5, CodeT5 ...), 'mt5' "
            f"or {T5FusionConfig.model_type!r}."
        )
    if isinstance(config, (str, os.PathLike)):
        config = T5FusionConfig.from_dict(
            PretrainedConfig.get_config_dict(config, **for_other_repository(hub_kwargs))[0]
        )
    if config is None:
        config, kwargs = _config_from_saved(name, hub_kwargs, saved, kwargs)
    config = copy.deepcopy(config)
    config.weights_from_backbone = config.adapter_beside = False  # They describe a saved folder, not a loaded model.
    if model_type in BASE_MODEL_TYPES and getattr(config, "backbone", None) is None:
        config.backbone, config.backbone_revision = str(name_to_record(name)), commit_of(name, hub_kwargs)
    if model_type == "mt5":
        config.scale_decoder_outputs = False  # An mT5 never scales them, whether or not its head is tied.
    return config, kwargs


def _config_from_saved(
    name: NameOrPath, hub_kwargs: dict[str, Any], saved: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[T5FusionConfig, dict[str, Any]]:
    """Return the config that `saved` and the config fields among `kwargs` give, and the other keywords."""
    saved, model_type = copy.deepcopy(saved), saved.get("model_type")
    if model_type == "mt5":  # The fields that its config.json leaves out have other defaults than T5's.
        saved = MT5Config.from_dict(saved).to_dict()
    if model_type in BASE_MODEL_TYPES:
        saved["backbone"] = str(name_to_record(name))
        saved["backbone_revision"] = commit_of(name, hub_kwargs)
        if "lexical_token_id" not in kwargs:
            saved["lexical_token_id"] = free_token_id(name, hub_kwargs)
    # As part of `saved`, the fusion fields are checked by the config's `__init__`.
    saved |= {field: kwargs.pop(field) for field in FUSION_FIELDS if field in kwargs}
    dtype = {field: kwargs.pop(field) for field in ("dtype", "torch_dtype") if field in kwargs}
    # `from_dict`, because `from_pretrained` would warn that a "t5" becomes a "t5_fusion".
    config, kwargs = T5FusionConfig.from_dict(saved, return_unused_kwargs=True, **kwargs)
    return config, kwargs | dtype  # The config never gets the dtype: it would take "auto" for the name of a dtype.


def commit_of(name: NameOrPath, hub_kwargs: dict[str, Any]) -> str | None:
    """Return the commit of a model's files on the Hub; None for a folder.

    (Since transformers 5.23, a config no longer holds the commit.)

    Raises:
        OSError: Its config.json cannot be read.
    """
    return None if os.path.isdir(name) else extract_commit_hash(cached_file(name, "config.json", **hub_kwargs), None)


def free_token_id(name: NameOrPath, hub_kwargs: dict[str, Any]) -> int | None:
    """Return the id that `<lexical>` has, or gets when it is added, in a base model's tokenizer.

    Returns None if the base model has no tokenizer.

    Raises:
        ValueError: The tokenizer cannot be loaded.
    """
    no_error = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(name, "tokenizer_config.json", **no_error, **hub_kwargs) is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_kwargs)
    except (ImportError, ValueError) as error:  # A package is missing, or the file is of a different kind.
        raise ValueError(
            f"the tokenizer of {name} cannot be loaded ({first_line(error)}), so the id of {LEXICAL_TOKEN} is unknown. "
            "If its only file is `spiece.model`, type `pip install sentencepiece`. Or pass `lexical_token_id=`, the "
            "number of its tokens."
        ) from error
    return tokenizer.get_vocab().get(LEXICAL_TOKEN, len(tokenizer))
