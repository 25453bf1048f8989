"""How a run is shown: in a line, and in a notebook. `repr` has every setting."""

from typing import TYPE_CHECKING, cast

from layercache.errors import StoreError

if TYPE_CHECKING:
    from layercache.store.layout import Run


class Told:
    """What `print(run)` and a notebook show of a run."""

    def __str__(self) -> str:
        own = described(cast("Run", self))
        return f"{own.pop('run')}: {', '.join(f'{name} {value}' for name, value in own.items())}"

    def _repr_html_(self) -> str:
        """Show the same as a table in a notebook; text of the store is escaped."""
        from layercache.table import html_text

        own = described(cast("Run", self))
        lines = [f"<tr><th>{name}</th><td>{html_text(value)}</td></tr>" for name, value in own.items()]
        return f"<table>{''.join(lines)}</table>"


def described(run: "Run") -> dict[str, str]:
    """Say in words which model a run is of, on which data, and what of it: name → text.

    What the store no longer says, since it was moved away, is left out.
    """
    from layercache import listing
    from layercache.store import reader

    own = {"run": run.id, "model": run.model}
    top = run.layers[-1].layer
    layers = f"0 to {top}" + (f" ({top} after the final norm)" if top > run.final_layer else "")
    try:
        held = listing.summary(reader.open(run.store), run)
        own |= {"data": held["data"] or "none", "samples": f"{held['samples']:,}", "conditions": held["conditions"]}
    except (StoreError, OSError):
        pass
    return {**own, "layers": layers, "width": str(run.width), "dtype": str(run.spec.get("dtype", "unknown"))}
