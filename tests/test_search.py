"""What every search must say of itself."""

import pytest

from nnunet_nas.search import BilevelSearchTrainer


def test_a_search_that_leaves_something_out_cannot_be_made():
    class Unfinished(BilevelSearchTrainer):
        def decide(self):
            pass

    with pytest.raises(TypeError, match="abstract .*draw_progress.*load_search_state.*supernet") as error:
        Unfinished({}, "2d", 0, {})
    assert "decide" not in str(error.value)
