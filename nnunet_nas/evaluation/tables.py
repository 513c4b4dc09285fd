"""Comparisons as rows of text, CSV and LaTeX.

What a comparison holds is its JSON; a column says once what it takes from there and how every form prints it. A cell
whose value is missing is a dash in text and LaTeX and empty in CSV.
"""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_nas.evaluation.costs import Cost
from nnunet_nas.evaluation.report import Combined, PairTable, letter
from nnunet_nas.evaluation.rows import Group, Row

_SMALLEST_P = 1e-10


@dataclass(frozen=True)
class Column:
    """A column of a table; headings and cells are format strings over the values of a row.

    Attributes:
        heading: in text; empty for a column of CSV alone.
        cell: in text and LaTeX; the format `p` is for p-values.
        latex: heading in LaTeX.
        align: l, c or r, in LaTeX.
        csv: what CSV has of it, with all digits: values, or `heading=value`.
        optional: shown in text and LaTeX only where a row of the table has a value.
    """

    heading: str
    cell: str
    latex: str = ""
    align: str = "r"
    csv: str = ""
    optional: bool = False


COMPARISON = (
    Column("", "", csv="dataset fold metric first second class"),
    Column("{title}", "{name}", "class", "l", csv="name"),
    Column("cases", "{cases}", "$n$", csv="cases"),
    Column("patients", "{patients}", "patients", csv="patients", optional=True),
    Column("{a}", "{mean_first:.{digits}f}", "{a}", csv="mean_first"),
    Column("{b}", "{mean_second:.{digits}f}", "{b}", csv="mean_second"),
    Column("{b} - {a}", "{difference:+.{digits}f}", "{b} $-$ {a}", csv="difference"),
    Column(
        "95 % interval",
        "[{interval[low]:+.{digits}f}, {interval[high]:+.{digits}f}]{mark}",
        r"95\,\% interval",
        "c",
        csv="low=interval[low] high=interval[high] interval=interval[method]",
    ),
    Column("won/lost/tied", "{won}/{lost}/{tied}", "won/lost/tied", csv="won lost tied"),
    Column("effect", "{effect:+.2f}", "effect", csv="effect"),
    Column("p", "{p_value:p}", "$p$", csv="p_value"),
    Column("p Holm", "{p_holm:p}", r"$p_{{\text{{Holm}}}}$", csv="p_holm"),
    Column(
        "p equiv.",
        "{equivalence[p_holm]:p}",
        r"$p_{{\text{{equiv.}}}}$",
        csv="p_equivalence=equivalence[p_value] p_equivalence_holm=equivalence[p_holm] margin=equivalence[margin]",
    ),
    Column(
        "within ±{margin:g}",
        "{equivalence[verdict]}",
        r"within $\pm{margin:g}$",
        "l",
        csv="verdict=equivalence[verdict] cases_needed",
    ),
    Column("absent", "{absent[cases]}", "absent", csv="absent=absent[cases]", optional=True),
    Column(
        "{a}/{b} predict",
        "{absent[first]:g}/{absent[second]:g}",
        "{a}/{b} predict",
        csv="absent_first=absent[first] absent_second=absent[second]",
        optional=True,
    ),
    Column(
        "p absent", "{absent[p_value]:p}", r"$p_{{\text{{absent}}}}$", csv="p_absent=absent[p_value]", optional=True
    ),
    Column("", "", csv="undefined_in_both undefined_in_one"),
)
COMBINED = (
    Column("combined", "{metric}, {what}"),
    Column("effects above/below 0", "{gains}/{losses}"),
    Column("p Fisher", "{p_fisher:p}{mark}"),
)
COSTS = (
    Column("", "{letter}"),
    Column("configuration", "{configuration}"),
    Column("patch size", "{patch}"),
    Column("parameters", "{parameters:,}"),
    Column("", "{parameters_share}"),
    Column("MACs", "{giga_macs:.3f} G"),
    Column("", "{macs_share}"),
    Column("inference MiB", "{inference_mib:.1f}"),
    Column("training MiB", "{training_mib:.1f}"),
)
TIME = Column("ms per patch", "{milliseconds:.1f}")
CASES = ("dataset", "fold", "metric", "class", "name", "case", "first", "second", "first_value", "second_value")


def comparison_text(table: PairTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table; differences are second - first."""
    return _printed(COMPARISON, _heading_values(table), [_cell_values(table, row) for row in table.rows])


def comparison_csv(tables: Sequence[PairTable]) -> str:
    """One line per row of the tables, with all digits."""
    fields = [field.partition("=") for column in COMPARISON for field in column.csv.split()]
    rows = [_row_values(table, row) for table in tables for row in table.rows]
    lines = [[_csv_cell(place or name, values) for name, _, place in fields] for values in rows]
    return _csv([name for name, *_ in fields], lines)


def comparison_latex(table: PairTable) -> str:
    """A `tabular` for LaTeX's booktabs."""
    heading, values = _heading_values(table), [_cell_values(table, row) for row in table.rows]
    columns = _shown(COMPARISON, values)
    names = f"{heading['a']} = {heading['first']}, {heading['b']} = {heading['second']}"
    lines = [
        f"% {table.group.title}{', by patient' if table.group.patients else ''}: {table.metric.title}; {names}",
        f"\\begin{{tabular}}{{{''.join(column.align for column in columns)}}}",
        r"\toprule",
        " & ".join(column.latex.format_map(heading) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join(_latex(_cell(column, row)) for column in columns) + r" \\" for row in values),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def cases_csv(tables: Sequence[PairTable]) -> str:
    """One line per compared case, class and pair of models: what the pictures show."""
    lines = []
    for table in tables:
        for row in table.rows:
            values = _row_values(table, row)
            for case, first, second in zip(row.cases, row.first, row.second, strict=True):
                values.update(case=case, first_value=float(first), second_value=float(second))
                lines.append([values[name] for name in CASES])
    return _csv(CASES, lines)


def combined_text(combined: Sequence[Combined]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what was combined, direction of the comparisons, and the p-value."""
    return _printed(COMBINED, {}, [{**asdict(each), "mark": "" if each.independent else "+"} for each in combined])


def cost_text(group: Group, costs: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what a group's models cost, with shares of the first one; dashes where it is unknown."""
    timed = any(cost.seconds_per_patch is not None for cost in costs)
    rows = [
        {"letter": letter(position), "configuration": model.configuration, **_cost_values(cost, costs[0], position)}
        for position, (model, cost) in enumerate(zip(group.models, costs, strict=True))
    ]
    return _printed((*COSTS, TIME) if timed else COSTS, {}, rows)


def p_text(p_value: float) -> str:
    """A p-value with two digits; tiny ones as a bound."""
    return f"<{_SMALLEST_P:.0e}" if p_value < _SMALLEST_P else f"{p_value:.2g}"


class _MissingError(LookupError):
    """A value that a cell needs is not there."""


class _Cells(string.Formatter):
    """Python's format strings, with `p` for p-values."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        value = kwargs.get(str(key))
        if value is None:
            raise _MissingError(key)
        return value

    def format_field(self, value: Any, format_spec: str) -> str:
        return p_text(value) if format_spec == "p" else str(super().format_field(value, format_spec))


def _printed(
    columns: Sequence[Column], heading: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    shown = _shown(columns, rows)
    return [column.heading.format_map(heading) for column in shown], [
        [_cell(column, values) for column in shown] for values in rows
    ]


def _shown(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [
        column
        for column in columns
        if column.cell and not (column.optional and all(_cell(column, values) == "-" for values in rows))
    ]


def _cell(column: Column, values: Mapping[str, Any]) -> str:
    try:
        return _Cells().vformat(column.cell, (), values)
    except _MissingError:
        return "-"


def _heading_values(table: PairTable) -> dict[str, Any]:
    one, other = table.letters
    return {**table.to_json(), "a": one, "b": other, "title": table.metric.title, "margin": table.metric.margin}


def _row_values(table: PairTable, row: Row) -> dict[str, Any]:
    """Everything about a row, by the names that columns use."""
    return table.to_json() | row.to_json()


def _cell_values(table: PairTable, row: Row) -> dict[str, Any]:
    values = _row_values(table, row)
    by_percentile = values.get("interval") and values["interval"]["method"] == "percentile"
    return values | {"digits": table.metric.digits, "mark": "*" if by_percentile else ""}


def _cost_values(cost: Cost, first: Cost, position: int) -> dict[str, Any]:
    found, base = cost.to_json(), first.to_json()
    if found is None:
        return {}
    values = {
        **found,
        "patch": "x".join(map(str, found["patch_size"])),
        "giga_macs": found["macs"] / 1e9,
        "milliseconds": None if cost.seconds_per_patch is None else 1000 * cost.seconds_per_patch,
    }
    for name in ("parameters", "macs"):
        values[f"{name}_share"] = _share(found[name], base[name]) if base and position else ""
    return values


def _share(value: int, base: int) -> str:
    """A part of the base as `1/12`, more than the base as `1.04x`."""
    ratio = value / base
    return f"1/{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}x"


def _csv_cell(place: str, values: Mapping[str, Any]) -> Any:
    """Nothing where there is no value, the number of cases where JSON lists them."""
    try:
        value, _ = _Cells().get_field(place, (), values)
    except _MissingError:
        return ""
    return len(value) if isinstance(value, list) else value


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def _latex(text: str) -> str:
    """Text in which nothing means something to LaTeX, and minus signs are minus signs."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    text = text.replace("<", "$<$").replace("±", r"$\pm$")
    return text.replace("-", "$-$") if text[:1] in "+-[" and any(map(str.isdigit, text)) else text
