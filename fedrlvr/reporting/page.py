"""Pages: self-contained HTML from the Jinja templates beside this file, with one style sheet (page.css.jinja)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedrlvr.reporting import units
from fedrlvr.reporting.figures import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Template

_FILTERS = (
    units.percent,
    units.with_interval,
    units.signed,
    units.count,
    units.size,
    units.duration,
    units.points,
)


def page_template(name: str) -> Template:
    """A template of this directory, which escapes every value and knows the units and the page's colours."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS})
    environment.globals.update(light=LIGHT, dark=DARK)
    return environment.get_template(name)
