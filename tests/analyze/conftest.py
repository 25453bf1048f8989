from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Keep the references' linear algebra from spinning on a busy machine."""
    with threadpool_limits(1, user_api="blas"):
        yield
