r"""Answers as typed values: what an answer says, its canonical key, and which answers are equal.

`normalise` takes the markup off, `parse` reads the text into one of the types of `forms`, and `matches` holds the
table of the pairs of types that are compared at all. A type's `key` is one string for everything that plainly says
the same, so that votes can be counted by it. Text that the parser does not consume whole is text: nothing is dropped
on the way to a comparison.
"""

from fedrlvr.tasks.answers.choices import offers_another, option_letter, word_of
from fedrlvr.tasks.answers.matching import equal, matches
from fedrlvr.tasks.answers.parsing import parse, readings

__all__ = ["equal", "matches", "offers_another", "option_letter", "parse", "readings", "word_of"]
