"""Which rows have states, and the states themselves, under any condition: what probes are fitted on and applied to."""

import numpy as np
import numpy.typing as npt
import polars as pl

from layercache.errors import AnalysisError
from layercache.store.layout import CLEAN, Run
from layercache.store.reader import Store
from layercache.store.states import Matrix
from layercache.store.stored import StoredFeature


def present(
    store: Store, run: Run, sample_ids: npt.NDArray[np.str_], feature: StoredFeature, condition: str = CLEAN
) -> npt.NDArray[np.bool_]:
    """Tell which of these samples have a state at every layer of a feature, bool [n].

    An empty span is held, but has no state.
    """
    output = f"hidden:{feature.site}:{feature.pooling}"
    missing = store.held(run, condition).missing(sample_ids.tolist(), {output: feature.layers})
    named = pl.col("absent").list.eval(pl.element().struct["output"]).list.contains(output)
    empty = store.samples(run, condition).filter(named)["sample_id"].to_list()
    lacking = {*empty, *(name for _, ids in missing for name in ids)}
    return np.array([name not in lacking for name in sample_ids.tolist()], dtype=np.bool_)


def finite(store: Store, run: Run, feature: StoredFeature, layer: int, condition: str = CLEAN) -> Matrix:
    """Read the states of a layer; a probe cannot be fitted on infinities, nor say anything of them.

    Raises:
        AnalysisError: some are infinite or NaN.
    """
    states = store.matrix(run, layer, feature.pooling, site=feature.site, condition=condition)
    broken = int((~np.isfinite(states.values)).any(axis=1).sum())
    if broken:
        under = "" if condition == CLEAN else f" under {condition}"
        raise AnalysisError(
            f"{run.id}: {broken:,} samples have infinite or NaN states {feature.pooling} at layer {layer}{under}; "
            "choose other layers, or extract in a wider dtype"
        )
    return states
