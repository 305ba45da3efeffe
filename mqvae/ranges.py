"""Numbers of a range, as types of settings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builtins import float as Decay
    from builtins import float as Norm
    from builtins import float as Rate
    from builtins import float as Share
    from builtins import int as Count
    from builtins import int as Number
    from builtins import int as Seed
else:
    from jsonargparse.typing import ClosedUnitInterval as Share
    from jsonargparse.typing import NonNegativeInt as Count
    from jsonargparse.typing import PositiveInt as Number
    from jsonargparse.typing import restricted_number_type

    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", 2**32 - 1)])
    Rate = restricted_number_type("Rate", float, [(">=", 0), ("<", float("inf"))])
    Norm = restricted_number_type("Norm", float, [(">", 0), ("<", float("inf"))])
    Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", 1)])

RANGES: dict[Any, tuple[type, str]] = {
    Count: (int, "be 0 or more"),
    Decay: (float, "be 0 or more and less than 1"),
    Norm: (float, "be above 0 and finite"),
    Number: (int, "be 1 or more"),
    Rate: (float, "be 0 or more and finite"),
    Seed: (int, "lie in 0 … 4294967295"),
    Share: (float, "lie in 0 … 1"),
}
"""What a number must be, in words."""

__all__ = ["RANGES", "Count", "Decay", "Norm", "Number", "Rate", "Seed", "Share"]
