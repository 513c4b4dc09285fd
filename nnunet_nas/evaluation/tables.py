"""Comparisons as rows of text, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from nnunet_nas.evaluation.costs import Cost
from nnunet_nas.evaluation.report import Combined, Group, Metric, PairTable, Row, letter

CSV_HEADER = (
    "dataset",
    "fold",
    "metric",
    "first",
    "second",
    "class",
    "name",
    "cases",
    "mean_first",
    "mean_second",
    "difference",
    "low",
    "high",
    "interval",
    "won",
    "lost",
    "tied",
    "effect",
    "p_value",
    "p_holm",
    "p_equivalence",
    "margin",
    "verdict",
    "undefined_in_both",
    "undefined_in_one",
)
CASES_HEADER = ("dataset", "fold", "metric", "class", "name", "case", "first", "second", "first_value", "second_value")
COMBINED_HEADER = ("combined", "effects above/below 0", "p Fisher")
COST_HEADER = ("", "configuration", "patch size", "parameters", "", "MACs", "", "inference MiB", "training MiB")
_SMALLEST_P = 1e-10


def comparison_header(table: PairTable) -> list[str]:
    """Header of a table; `difference` is second - first."""
    one, other = table.letters
    return [
        table.metric.title,
        "cases",
        one,
        other,
        f"{other} - {one}",
        "95 % interval",
        "won/lost/tied",
        "effect",
        "p",
        "p Holm",
        "p equiv.",
        f"within ±{table.metric.margin:g}",
    ]


def comparison_cells(row: Row, metric: Metric) -> list[str]:
    """A row of the table as text."""
    found = row.comparison
    if found is None:
        return [row.name, "0", *["-"] * 10]
    digits = metric.digits
    interval = "-"
    if found.interval is not None:
        mark = "" if found.interval.method == "BCa" else "*"
        interval = f"[{found.interval.low:+.{digits}f}, {found.interval.high:+.{digits}f}]{mark}"
    return [
        row.name,
        str(found.cases),
        f"{found.mean_first:.{digits}f}",
        f"{found.mean_second:.{digits}f}",
        f"{found.difference:+.{digits}f}",
        interval,
        f"{found.won}/{found.lost}/{found.tied}",
        f"{found.effect:+.2f}",
        p_text(found.p_value),
        "-" if row.p_holm is None else p_text(row.p_holm),
        "-" if found.equivalence is None else p_text(found.equivalence.p_value),
        "-" if found.equivalence is None else found.equivalence.verdict,
    ]


def has_percentile_interval(table: PairTable) -> bool:
    """Whether an interval of the table is marked with an asterisk."""
    intervals = [row.comparison.interval for row in table.rows if row.comparison]
    return any(interval is not None and interval.method != "BCa" for interval in intervals)


def cost_table(group: Group, costs: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what a group's models cost, with shares of the first one; dashes where it is unknown."""
    header, rows = list(COST_HEADER), []
    timed = any(cost.seconds_per_patch is not None for cost in costs)
    for position, (model, cost) in enumerate(zip(group.models, costs, strict=True)):
        row = [letter(position), model.configuration or "-", *_cost_cells(cost, costs[0] if position else None)]
        if timed:
            row.append("-" if cost.seconds_per_patch is None else f"{1000 * cost.seconds_per_patch:.1f}")
        rows.append(row)
    return [*header, "ms per patch"] if timed else header, rows


def combined_cells(combined: Combined) -> list[str]:
    """What was combined, direction of the comparisons, and the p-value, as text."""
    mark = "" if combined.independent else "+"
    directions = f"{combined.gains}/{combined.losses}"
    return [f"{combined.metric.name}, {combined.what}", directions, p_text(combined.p_value) + mark]


def p_text(p_value: float) -> str:
    """A p-value with two digits; tiny ones as a bound."""
    return f"<{_SMALLEST_P:.0e}" if p_value < _SMALLEST_P else f"{p_value:.2g}"


def comparison_csv(tables: Sequence[PairTable]) -> str:
    """One line per row of the tables, with all digits."""
    return _csv(CSV_HEADER, [_csv_cells(table, row) for table in tables for row in table.rows])


def cases_csv(tables: Sequence[PairTable]) -> str:
    """One line per compared case, class and pair of models: what the pictures show."""
    lines = []
    for table in tables:
        group = table.group
        one, other = group.models[0].name, group.models[table.position].name
        for row in table.rows:
            start = [group.dataset, group.fold, table.metric.name, row.key, row.name]
            for case, first, second in zip(row.cases, row.first, row.second, strict=True):
                lines.append([*start, case, one, other, float(first), float(second)])
    return _csv(CASES_HEADER, lines)


def comparison_latex(table: PairTable) -> str:
    """A `tabular` for LaTeX's booktabs."""
    one, other = table.letters
    header = [
        "class",
        "$n$",
        one,
        other,
        f"{other} $-$ {one}",
        r"95\,\% interval",
        "won/lost/tied",
        "effect",
        "$p$",
        r"$p_{\text{Holm}}$",
        r"$p_{\text{equiv.}}$",
        rf"within $\pm{table.metric.margin:g}$",
    ]
    models = table.group.models
    names = f"{one} = {models[0].name}, {other} = {models[table.position].name}"
    lines = [
        f"% {table.group.title}: {table.metric.title}; {names}",
        r"\begin{tabular}{lrrrrcrrrrrl}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex, comparison_cells(row, table.metric))) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def _cost_cells(cost: Cost, first: Cost | None) -> list[str]:
    if cost.spec is None or cost.complexity is None:
        return ["-"] * 7
    found = cost.complexity
    base = first.complexity if first else None
    return [
        "x".join(map(str, cost.spec.patch_size)),
        f"{found.parameters:,}",
        _share(found.parameters, base.parameters) if base else "",
        f"{found.macs / 1e9:.3f} G",
        _share(found.macs, base.macs) if base else "",
        f"{found.inference_mib:.1f}",
        f"{found.training_mib:.1f}",
    ]


def _share(value: int, base: int) -> str:
    """A part of the base as `1/12`, more than the base as `1.04x`."""
    ratio = value / base
    return f"1/{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}x"


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def _csv_cells(table: PairTable, row: Row) -> list[object]:
    group, found = table.group, row.comparison
    start = [group.dataset, group.fold, table.metric.name, group.models[0].name, group.models[table.position].name]
    end = [len(row.undefined), len(row.one_sided)]
    if found is None:
        return [*start, row.key, row.name, 0, *[""] * 15, *end]
    interval, equivalence = found.interval, found.equivalence
    return [
        *start,
        row.key,
        row.name,
        found.cases,
        found.mean_first,
        found.mean_second,
        found.difference,
        *(("", "", "") if interval is None else (interval.low, interval.high, interval.method)),
        found.won,
        found.lost,
        found.tied,
        found.effect,
        found.p_value,
        row.p_holm,
        *(("", "", "") if equivalence is None else (equivalence.p_value, equivalence.margin, equivalence.verdict)),
        *end,
    ]


def _latex(text: str) -> str:
    """Text in which nothing means something to LaTeX, and minus signs are minus signs."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    text = text.replace("<", "$<$").replace("±", r"$\pm$")
    return text.replace("-", "$-$") if text[:1] in "+-[" and any(map(str.isdigit, text)) else text
