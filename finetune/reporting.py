"""The experiment trackers that the Trainer can report to, and the packages that they need."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..common.errors import did_you_mean

# By transformers' name of the tracker: modules (one of them must exist), and the packages to install.
REPORTERS = {
    "azure_ml": (("azureml",), "azureml-core mlflow"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub mlflow"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "mlflow": (("mlflow",), "mlflow"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}


def check_reporters(names: Collection[str]) -> None:
    """Check that the Trainer can report to the trackers of these names.

    Raises:
        ValueError: transformers has no tracker of this name.
        ImportError: The tracker's package is not installed.
    """
    if isinstance(names, str):
        raise ValueError(f"`report_to` is {names!r}; expected names, such as ({names!r},).")
    for name in names:
        if name not in REPORTERS:
            hint = did_you_mean(name, REPORTERS, f"expected any of {', '.join(REPORTERS)}.")
            raise ValueError(f"`report_to` names {name!r}, which transformers does not report to; {hint}")
        modules, packages = REPORTERS[name]
        if not any(find_spec(module) for module in modules):
            raise ImportError(f"reports to {name} need its package: pip install {packages}")


@contextmanager
def reporting(names: Collection[str]) -> Iterator[None]:
    """Say in one sentence that one of these trackers failed, such as wandb without a login.

    Raises:
        RuntimeError: A tracker raised an error of a class of its own.
    """
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        for name in names:
            if package in REPORTERS[name][0]:
                raise RuntimeError(f"logging to {name} failed: {error}") from error
        raise
