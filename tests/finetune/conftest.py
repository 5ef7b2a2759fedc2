"""What the tests of training, evaluation and generation share."""

import pytest

from t5fusion.common.base_models import make_processor


@pytest.fixture(scope="session")
def processor(base):
    """A processor of the small base model, for given vectors of eight numbers."""
    return make_processor(str(base), lexical_encoder=None, lexical_dim=8, lexical_source="given")
