"""Makes the charts of a page act as one: layers that are picked in one are picked in all, hidden models are hidden in all.

Every chart gets two parameters that the page's script sets: `brushed` (null or the first and the last layer picked) and
`hidden` (models not to draw). A chart needs nothing for it but fixed field names: `model`, `layer`, `other_layer`.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from layercache.report import theme

PARAMETERS = ({"name": "brushed", "value": None}, {"name": "hidden", "value": []})
BRUSHED = "layers"
"""How the names of panels begin whose x axis is the layer: the script lets these be brushed."""
_SHOWN = "indexof(hidden, datum.model) < 0"
_FAINT = 0.12
_DIMMED = frozenset({"rect", "bar", "point", "circle", "tick", "text"})

Unit = dict[str, Any]


def linked(spec: dict[str, Any], columns: Mapping[str, Set[str]], models: Sequence[str]) -> dict[str, Any]:
    """Return a chart that follows the page's layers and models.

    Args:
        spec: a Vega-Lite specification whose data have names.
        columns: the columns of these.
        models: every model of the page, in order; each gets the same colour and shape in all charts, where there are
            colours enough.
    """
    panels = [0]
    done = _walk(spec, columns, list(models) if len(models) <= len(theme.PALETTE) else [], panels, None)
    return {**done, "params": [*spec.get("params", []), *PARAMETERS]}


def _walk(
    spec: Unit, columns: Mapping[str, Set[str]], models: list[str], panels: list[int], data: Any, inside: bool = False
) -> Unit:
    data = spec.get("data", data)
    for how in ("concat", "hconcat", "vconcat"):
        if how in spec:
            return {**spec, how: [_walk(one, columns, models, panels, data) for one in spec[how]]}
    if "layer" in spec:
        layers = [_walk(one, columns, models, panels, data, inside=True) for one in spec["layer"]]
        over = next((one["encoding"]["x"] for one in layers if _by_layer(one) and _continuous(one)), None)
        if over is None:
            return _named({**spec, "layer": [_dimmed(one, columns, data) for one in layers]}, layers, panels)
        # Over all that is seen, under what is there for the mouse.
        seen, felt = ([one for one in layers if _invisible(one) is unseen] for unseen in (False, True))
        return _named({**spec, "layer": [*seen, _veil(over), *felt]}, layers, panels)
    spec = _with_colours(_without_hidden(spec, columns, data), models)
    return spec if inside else _named(_dimmed(spec, columns, data), [spec], panels)


def _named(spec: Unit, units: Sequence[Unit], panels: list[int]) -> Unit:
    """Name a panel whose x axis is the layer."""
    if not any(_by_layer(one) for one in units):
        return spec
    panels[0] += 1
    return {**spec, "name": f"{BRUSHED}{panels[0]}"}


def _by_layer(unit: Unit) -> bool:
    return unit.get("encoding", {}).get("x", {}).get("field") in ("layer", "other_layer")


def _continuous(unit: Unit) -> bool:
    return bool(unit["encoding"]["x"].get("type") == "quantitative")


def _mark(unit: Unit) -> dict[str, Any]:
    mark = unit.get("mark", {})
    return mark if isinstance(mark, dict) else {"type": mark}


def _invisible(unit: Unit) -> bool:
    """Tell a layer that is there for the mouse alone."""
    return _mark(unit).get("opacity") == 0


def _held(unit: Unit, columns: Mapping[str, Set[str]], data: Any) -> Set[str]:
    own = unit.get("data", data)
    return columns.get(str(own.get("name")), frozenset()) if isinstance(own, dict) else frozenset()


def _without_hidden(unit: Unit, columns: Mapping[str, Set[str]], data: Any) -> Unit:
    if "model" not in _held(unit, columns, data):
        return unit
    return {**unit, "transform": [{"filter": _SHOWN}, *unit.get("transform", [])]}


def _dimmed(unit: Unit, columns: Mapping[str, Set[str]], data: Any) -> Unit:
    """Make what belongs to layers that are not picked faint."""
    held, mark = _held(unit, columns, data), _mark(unit)
    fields = [name for name in ("layer", "other_layer") if name in held]
    if not fields or mark.get("type") not in _DIMMED or _invisible(unit) or "opacity" in unit.get("encoding", {}):
        return unit
    picked = " && ".join(f"datum.{name} >= brushed[0] && datum.{name} <= brushed[1]" for name in fields)
    full = mark.get("opacity", 1)
    shade = {"condition": {"test": f"!isValid(brushed) || ({picked})", "value": full}, "value": _FAINT * full}
    return {**unit, "encoding": {**unit["encoding"], "opacity": shade}}


def _veil(x: dict[str, Any]) -> Unit:
    """Cover the layers that are not picked."""
    least, most = x["scale"]["domain"]
    return {
        "data": {"values": [{"side": 0}, {"side": 1}]},
        "transform": [
            {"filter": "isValid(brushed)"},
            {"calculate": f"datum.side ? brushed[1] + 0.5 : {least}", "as": "from"},
            {"calculate": f"datum.side ? {most} : brushed[0] - 0.5", "as": "to"},
            {"filter": "datum.from < datum.to"},
        ],
        "mark": {"type": "rect", "style": theme.VEIL, "clip": True, "tooltip": None, "aria": False},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "title": x.get("title"), "scale": x["scale"]},
            "x2": {"field": "to"},
        },
    }


def _with_colours(unit: Unit, models: list[str]) -> Unit:
    """Give every model the colour and shape that it has on the whole page; the legend names those of the chart."""
    encoding = dict(unit.get("encoding", {}))
    for channel in ("color", "shape"):
        own = encoding.get(channel, {})
        domain = own.get("scale", {}).get("domain")
        if own.get("field") != "model" or not domain or not set(domain) <= set(models):
            continue
        scale = {**own["scale"], "domain": models}
        if channel == "shape":
            scale["range"] = theme.shapes(len(models))
        legend = own.get("legend")
        encoding[channel] = {**own, "scale": scale, "legend": legend and {**legend, "values": domain}}
    return {**unit, "encoding": encoding} if encoding else unit
