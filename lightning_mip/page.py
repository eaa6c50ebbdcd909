"""A sweep as one HTML file with a slider over ``h``, which needs no network; by plotly, which is optional."""

from __future__ import annotations

import base64
import html
import importlib.util
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_mip.plotting import COLOURS, LINE, MARK, PRIOR, Scale, density, edges_of, kind_of, scale_of, triangle
from lightning_mip.space import HSpace
from lightning_mip.table import Sweep

_TEMPLATE = Path(__file__).with_name("page.html")
_ROW = 320
# Share of a panel that the prior's density takes.
_STRIP = 0.12


def write_page(
    table: Sweep,
    path: str | Path,
    *,
    title: str = "Sweep",
    pictures: Sequence[Mapping[str, bytes]] | None = None,
) -> None:
    """Write the page: figures of all metrics, and a slider over ``h`` that moves a cursor in them.

    Args:
        table: the sweep.
        path: the file.
        title: of the page.
        pictures: caption -> PNG file for each point, shown at its ``h``.

    Raises:
        ImportError: plotly is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise ImportError("write_page needs plotly; pip install 'lightning-mip[page]', or use table.plot().")
    from plotly.offline import get_plotlyjs

    figure, cursors = _figure(table)
    dials, order = _dials(table)
    data: dict[str, Any] = {
        "dials": dials,
        "order": order,
        "metrics": [
            {"name": name, "values": [f"{value:.6g}" for value in values.tolist()]}
            for name, values in table.metrics.items()
        ],
        "figure": figure,
        "note": "Grey: how often training draws each value." if kind_of(table) == "curve" else "",
        "cursors": cursors,
        "pictures": pictures and [[_picture(*item) for item in each.items()] for each in pictures],
    }
    # In one pass, so that no text of the user's is taken for a place to fill in.
    parts = {"TITLE": html.escape(title), "PLOTLY": get_plotlyjs(), "DATA": _in_script(data)}
    pieces = _TEMPLATE.read_text(encoding="utf-8").split("__")
    Path(path).write_text("".join(parts.get(piece, piece) for piece in pieces), encoding="utf-8")


def _in_script(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _picture(caption: str, png: bytes) -> dict[str, str]:
    return {"caption": caption, "png": base64.b64encode(png).decode("ascii")}


def _dials(table: Sweep) -> tuple[list[dict[str, Any]], list[int]]:
    """One slider per component that varies, and the point at each combination of their places.

    Points that are not all combinations of their values get one slider over their list.
    """
    names = table.varying or list(table.space)[:1]
    axes = {name: list(dict.fromkeys(_labels(table, name))) for name in names}
    keys = list(zip(*(_labels(table, name) for name in names), strict=True))
    points = {key: index for index, key in enumerate(keys)}
    combinations = list(itertools.product(*axes.values()))
    if len(combinations) != len(table) or any(key not in points for key in combinations):
        labels = table.labels
        return [{"name": "h", "labels": labels, "start": len(labels) // 2}], list(range(len(labels)))
    dials = [{"name": name, "labels": labels, "start": len(labels) // 2} for name, labels in axes.items()]
    return dials, [points[key] for key in combinations]


def _labels(table: Sweep, name: str) -> list[str]:
    own = HSpace({name: table.space[name]})
    return [own.label(h).partition("=")[2].replace(":", " : ") for h in table.h]


def _figure(table: Sweep) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figure as plain data, and for each panel its cursor: trace, line, and place at each point."""
    from plotly.subplots import make_subplots

    kind, names = kind_of(table), list(table.metrics)
    if kind is None:
        return {}, []
    pairs = [names[:2]] if kind == "front" and len(names) > 1 else [[name] for name in names]
    draw = {"curve": _curve, "front": _front if len(names) > 1 else _curve, "map": _map, "ternary": _ternary}[kind]
    columns = 1 if len(pairs) == 1 else 2
    rows = -(-len(pairs) // columns)
    figure = make_subplots(
        rows,
        columns,
        specs=[[{"secondary_y": kind == "curve"}] * columns] * rows,
        horizontal_spacing=0.1 if draw is _curve else 0.22,
        vertical_spacing=0.25 / rows,
    )
    figure.update_layout(template="plotly_white", showlegend=False, height=100 + _ROW * rows, hovermode="closest")
    figure.update_layout(margin={"t": 36, "r": 20, "l": 60, "b": 40})
    cursors = [draw(figure, table, shown, *_row_column(k, columns)) for k, shown in enumerate(pairs)]
    return json.loads(figure.to_json()), cursors


def _row_column(index: int, columns: int) -> tuple[int, int]:
    return index // columns + 1, index % columns + 1


def _curve(figure: Any, table: Sweep, names: Sequence[str], row: int, column: int) -> dict[str, Any]:
    """A metric over one number, or over the first of two weights."""
    (component,) = table.varying
    values, prior = table.values(component), table.space[component]
    scale = Scale(False) if values.ndim > 1 else scale_of(prior)
    x = scale.positions(values[:, 0] if values.ndim > 1 else values)
    y = table[names[0]].double()
    at = {"row": row, "col": column}
    if values.ndim == 1:
        edges, heights = density(prior)
        steps = [0.0, *heights.tolist(), 0.0]
        hover = "how often training draws it"
        figure.add_scatter(
            x=[float(edges[0]), *edges.tolist()],
            y=steps[: len(edges) + 1],
            **{"line": {"shape": "hv", "width": 0}, "fill": "tozeroy", "fillcolor": PRIOR},
            **{"mode": "lines", "name": hover, "hoverinfo": "name", "secondary_y": True, **at},
        )
        figure.update_yaxes(range=[0, 1.1], visible=False, fixedrange=True, secondary_y=True, **at)
        _put_under(figure, at)
    order = x.argsort()
    mode = "markers" if scale.ticks is not None else "lines+markers"
    figure.add_scatter(x=_plain(x[order]), y=_plain(y[order]), mode=mode, line={"color": LINE}, name="", **at)
    axes = figure.data[-1]
    figure.add_shape(
        type="line",
        xref=axes.xaxis,
        yref=f"{axes.yaxis} domain",
        y0=0,
        y1=1,
        line={"color": MARK, "dash": "dot", "width": 1},
    )
    _lay(figure.update_xaxes, scale, component if values.ndim == 1 else f"{component}[0]", at)
    figure.update_yaxes(title_text=html.escape(names[0]), secondary_y=False if values.ndim == 1 else None, **at)
    return _cursor(figure, x, y, at, line=len(figure.layout.shapes) - 1)


def _map(figure: Any, table: Sweep, names: Sequence[str], row: int, column: int) -> dict[str, Any]:
    """A metric over two numbers."""
    scales = [scale_of(table.space[name]) for name in table.varying]
    x, y = (scale.positions(table.values(name)) for scale, name in zip(scales, table.varying, strict=True))
    z, at = table[names[0]].double(), {"row": row, "col": column}
    columns, rows = x.unique(), y.unique()
    bar = _colour_bar(figure, names[0], at)
    if len(columns) * len(rows) == len(table):
        cells = torch.full((len(rows), len(columns)), math.nan, dtype=torch.float64)
        cells[torch.searchsorted(rows, y), torch.searchsorted(columns, x)] = z
        edges = [edges_of(axis, scale.log) for axis, scale in zip((columns, rows), scales, strict=True)]
        figure.add_heatmap(
            x=_plain(edges[0]),
            y=_plain(edges[1]),
            z=[_plain(line) for line in cells],
            colorscale=COLOURS,
            colorbar=bar,
            **at,
        )
    else:
        marker = {"color": _plain(z), "colorscale": COLOURS, "showscale": True, "colorbar": bar, "size": 12}
        figure.add_scatter(x=_plain(x), y=_plain(y), mode="markers", marker=marker, name="", **at)
    for update, scale, name in zip((figure.update_xaxes, figure.update_yaxes), scales, table.varying, strict=True):
        _lay(update, scale, name, at)
    return _cursor(figure, x, y, at)


def _ternary(figure: Any, table: Sweep, names: Sequence[str], row: int, column: int) -> dict[str, Any]:
    """A metric over three weights: a triangle whose corners have one weight of 1."""
    (component,) = table.varying
    weights, at = table.values(component).double(), {"row": row, "col": column}
    x, y = triangle(weights)
    corners = [_plain(place) for place in triangle(torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]])]
    figure.add_scatter(x=corners[0], y=corners[1], mode="lines", line={"color": "#22303c"}, hoverinfo="skip", **at)
    marker = {"color": _plain(table[names[0]]), "colorscale": COLOURS, "showscale": True, "size": 13}
    figure.add_scatter(
        x=_plain(x),
        y=_plain(y),
        mode="markers",
        marker={**marker, "colorbar": _colour_bar(figure, names[0], at)},
        text=[
            html.escape(f"{label}: {value:.6g}")
            for label, value in zip(table.labels, table[names[0]].tolist(), strict=True)
        ],
        hoverinfo="text",
        **at,
    )
    for k, (place, shift) in enumerate(zip(zip(*corners, strict=True), (-14, -14, 14), strict=False)):
        if k < 3:
            text = html.escape(f"{component}[{k}] = 1")
            figure.add_annotation(x=place[0], y=place[1], text=text, showarrow=False, yshift=shift, **at)
    figure.update_xaxes(visible=False, range=[-0.15, 1.15], **at)
    figure.update_yaxes(visible=False, range=[-0.12, 1.0], scaleanchor=figure.data[-1].xaxis, **at)
    return _cursor(figure, x, y, at)


def _front(figure: Any, table: Sweep, names: Sequence[str], row: int, column: int) -> dict[str, Any]:
    """Two metrics against each other, by the weight of the first preference."""
    (component,) = table.varying
    weight, at = table.values(component)[:, 0].double(), {"row": row, "col": column}
    x, y = (table[name].double() for name in names)
    order = weight.argsort()
    bar = _colour_bar(figure, f"{component}[0]", at)
    marker = {"color": _plain(weight[order]), "colorscale": COLOURS, "showscale": True, "colorbar": bar, "size": 10}
    figure.add_scatter(
        x=_plain(x[order]),
        y=_plain(y[order]),
        mode="lines+markers",
        line={"color": "#c3cad2"},
        marker=marker,
        name="",
        **at,
    )
    figure.update_xaxes(title_text=html.escape(names[0]), **at)
    figure.update_yaxes(title_text=html.escape(names[1]), **at)
    return _cursor(figure, x, y, at)


def _cursor(figure: Any, x: Tensor, y: Tensor, at: Mapping[str, int], line: int | None = None) -> dict[str, Any]:
    """A ring that the sliders move."""
    marker = {"size": 14, "color": "rgba(255,255,255,0.35)", "line": {"color": MARK, "width": 3}}
    figure.add_scatter(x=[], y=[], mode="markers", marker=marker, hoverinfo="skip", **at)
    return {"trace": len(figure.data) - 1, "line": line, "x": _plain(x), "y": _plain(y)}


def _put_under(figure: Any, at: Mapping[str, int]) -> None:
    """Give the second y axis of a panel a strip of its own between the first one and the x axis."""
    main, strip = figure.get_subplot(**at), figure.get_subplot(**at, secondary_y=True)
    low, high = main.yaxis.domain
    main.yaxis.domain = (low + _STRIP * (high - low), high)
    strip.yaxis.update(domain=(low, low + 0.8 * _STRIP * (high - low)), overlaying=None, side="left")
    main.xaxis.anchor = strip.yaxis.plotly_name.replace("axis", "")


def _lay(update: Any, scale: Scale, name: str, at: Mapping[str, int]) -> None:
    update(title_text=html.escape(name), **at)
    if scale.ticks is not None:
        update(tickvals=list(scale.ticks), ticktext=list(scale.ticks.values()), **at)
    elif scale.log:
        update(type="log", exponentformat="power", dtick=1, **at)


def _colour_bar(figure: Any, name: str, at: Mapping[str, int]) -> dict[str, Any]:
    """The legend of a panel's colours, at its right side."""
    x, y = (axis.domain for axis in figure.get_subplot(at["row"], at["col"])[:2])
    title = {"text": html.escape(name), "side": "right"}
    return {"x": x[1] + 0.01, "y": sum(y) / 2, "len": y[1] - y[0], "thickness": 12, "title": title}


def _plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
