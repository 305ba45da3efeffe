"""What a step of each method costs, as a table."""

from collections.abc import Mapping

from reproduction.paper.further import Cost
from reproduction.paper.methods import paper_value
from reproduction.paper.results import Results
from reproduction.paper.sections import Cell, Column, Row, Table


def costs_table(
    works: Mapping[str, Cost], results: Results, number: int | None = None
) -> Table | None:
    """What a step of each method costs; None if nothing has been measured.

    Args:
        works: What measures it, by method.
        results: What was measured.
        number: The paper's table of costs; None for methods that it does not have.
    """
    found = {
        method: (results.name(work), content)
        for method, work in works.items()
        if (content := results.get(work)) is not None
    }
    if not found:
        return None
    (measure,) = {work.beside for work in works.values()}
    within = "of the ratios within a round"
    columns = [
        Column("ratio", "Cost of a step", "lower", protocol=f"ratio of medians to {measure}'s"),
        Column("lower", "Lower quartile", None, protocol=within),
        Column("upper", "Upper quartile", None, protocol=within),
        Column("ms", "ms", None, protocol="median of a step"),
        Column("beside", f"ms of {measure}", None, protocol="median of its step, in turns with it"),
    ]
    rows: list[Row] = []
    conditions: dict[str, list[str]] = {}
    for method, (name, content) in found.items():
        published = number and paper_value(number, "fashion-mnist", method, "ratio")
        lower, upper = content["quartiles"]
        cells = {
            "ratio": Cell((content["ratio"],), published),
            "lower": Cell((lower,)),
            "upper": Cell((upper,)),
            "ms": Cell((content["ms"],)),
            "beside": Cell((content["ms_beside"],)),
        }
        rows.append(Row(method, "cost", cells, runs=(name,)))
        machine = ", ".join(f"{key} {value}" for key, value in content["hardware"].items())
        told = f"{content['rounds']} rounds in turns, {content['date']}, {machine}"
        conditions.setdefault(told, []).append(method)
    notes = [
        f"{told}{'' if len(conditions) == 1 else ': ' + '; '.join(methods)}."
        for told, methods in conditions.items()
    ]
    return Table("One step on the same images", columns, rows, notes)
