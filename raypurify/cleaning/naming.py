"""Gives each draft of a plan the name of its output, each name once, in 8 bytes of memory an input.

Where all names collide it takes 32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raypurify.cleaning.digests import Digests
from raypurify.cleaning.drafts import Draft
from raypurify.cleaning.names import LEVELS, folded, output_name
from raypurify.cleaning.streams import Spool


class Names:
    """The names of a generation's outputs: :meth:`passed` learns which are liked, :meth:`named` gives them.

    A name that several inputs would like, or that is taken, is given to none of them: each gets its next one.
    """

    def __init__(self, extension: str, taken: Digests, *, folds: bool) -> None:
        """
        Args:
            extension: of cleaned images, without a dot.
            taken: names of former generations' outputs, sealed.
            folds: names that differ in upper and lower case only are one.
        """
        self.extension, self.taken, self.folds = extension, taken, folds
        self.liked, self.full = Digests(), Digests()

    def passed(self, drafts: Iterable[Draft]) -> Iterator[Draft]:
        """The drafts, on their way."""
        for draft in drafts:
            if draft.output is None:
                self.liked.add(self._seen(self._name(draft, 0)))
            yield draft

    def named(self, spool: Spool) -> Iterator[Draft]:
        """The drafts that have passed, from a spool, with names."""
        crowded = self.liked.seal().crowded(self.taken)
        for draft in _drafts(spool) if crowded.values else ():
            if draft.output is None and self._seen(self._name(draft, 0)) in crowded:
                self.full.add(self._seen(self._name(draft, 1)))
        full_crowded = self.full.seal().crowded(self.liked, self.taken)
        for draft in _drafts(spool):
            if draft.output is not None:
                yield draft
            elif self._seen(name := self._name(draft, 0)) not in crowded or (
                self._seen(name := self._name(draft, 1)) not in full_crowded
            ):
                yield draft._replace(output=name)
            else:
                yield draft._replace(output=self._hashed(draft))

    def _hashed(self, draft: Draft) -> str:
        level = LEVELS
        # A hostile key may look like the name with another's hash.
        while any(self._seen(self._name(draft, level)) in names for names in (self.liked, self.full, self.taken)):
            level += 1
        return self._name(draft, level)

    def _name(self, draft: Draft, level: int) -> str:
        run = "" if draft.is_alone else f"-{draft.first:09d}"
        return output_name(draft.key, draft.kind, extension=self.extension, run=run, level=level)

    def _seen(self, name: str) -> str:
        return folded(name) if self.folds else name


def _drafts(spool: Spool) -> Iterator[Draft]:
    return (Draft(*record) for record in spool.read())
