"""Numbers as people read them, the same in the terminal and in the report."""

from __future__ import annotations

from fedrlvr.reporting.scores import Estimate

MISSING = "–"


def percent(value: float | None) -> str:
    """A part of 1 in per cent: 0.314 is "31.4 %"."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def with_interval(value: Estimate | None, between: str = " ") -> str:
    """A rate and its interval in per cent: "31.4 % [25.1, 38.5]", with `between` before the bracket."""
    if value is None:
        return MISSING
    return f"{percent(value.mean)}{between}[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def points(value: Estimate | None, between: str = " ") -> str:
    """A difference of rates and its interval in percentage points: "+4.2 [-1.0, +9.4]"."""
    if value is None:
        return MISSING
    return f"{signed(value.mean)}{between}[{signed(value.low)}, {signed(value.high)}]"


def signed(value: float) -> str:
    """A part of 1 in percentage points, with its sign: 0.042 is "+4.2"; what rounds to nothing is "0.0"."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def count(value: float) -> str:
    """A whole number with thousands set off: "12,345"."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in decimal units: "1.3 MB"."""
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:,.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds as "4.2 s" below a minute, else as `clock`."""
    if seconds is None:
        return MISSING
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def clock(seconds: float) -> str:
    """Seconds as "3:07" (minutes:seconds) or "1:02:09"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
