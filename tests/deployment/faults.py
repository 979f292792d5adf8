"""What a refused call must look like."""
import pytest

from upl_reid.core import DataError


def fault(f, *args, error=DataError, **kwargs):
    "The message of the error that a call must raise: one line."
    with pytest.raises(error) as e: f(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)
