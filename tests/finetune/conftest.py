"""What the tests of training, evaluation and generation share."""

import pytest
from forks import Forks

from t5fusion.common.base_models import make_processor


@pytest.fixture(scope="session")
def processor(base):
    """A processor of the small base model, for given vectors of eight numbers."""
    return make_processor(str(base), lexical_encoder=None, lexical_dim=8, lexical_source="given")


@pytest.fixture(scope="module")
def run(room):
    """A function that runs a command in the folder `room` of a test file. It returns what is printed, or the error."""
    forks = Forks(room)

    def run(*words, fails=False):
        code, out, err = forks.run(*words)
        assert (code == 1) == fails and "Traceback" not in err, err
        return err.splitlines()[-1] if fails else (out, err)

    yield run
    forks.close()
