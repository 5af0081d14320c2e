"""The three numbers of a draft tree. No torch here: configurations name it."""

from dataclasses import dataclass, replace

from lit_hass.errors import UserError


@dataclass(frozen=True)
class TreeConfig:
    """How large a draft tree is, in the published meaning of EAGLE-2 and HASS.

    Candidates are on levels 1 .. ``depth + 1``, so a step accepts at most ``depth + 1`` draft tokens and commits one
    token more. A chain of 5 draft tokens is ``TreeConfig(6, 4, 1)``.

    Attributes:
        total_tokens: Nodes that the base looks at in one step, the root included: 1 drafts nothing, -1 chooses a size
            by timing. More than there are candidates is the same as all of them.
        depth: How often the draft continues its beam.
        top_k: Width of the beam, and continuations of each of its nodes.
        trim: Draft nothing behind a stop token, or beyond the answer's limit, where it could not be used. Faster for
            short answers; but the published code drafts on, so that the last entry of ``accept_lengths``, and with it
            the acceptance length, is smaller than by the published convention.

    Raises:
        UserError: A number lies outside its range; the message names the field.
    """

    total_tokens: int = 60
    depth: int = 5
    top_k: int = 10
    trim: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that have no meaning."""
        for name, low in (("total_tokens", 1), ("depth", 0), ("top_k", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"tree.{name} must be a whole number, got {value!r}")
            if value < low and not (name == "total_tokens" and value == -1):
                also = " (or -1, which chooses a size by timing)" if name == "total_tokens" else ""
                raise UserError(f"tree.{name} must be at least {low}{also}, got {value}")

    @property
    def candidates(self) -> int:
        """Tokens that the draft proposes in a step."""
        return self.top_k + self.depth * self.top_k * self.top_k

    @property
    def nodes(self) -> int:
        """Draft tokens N of a tree, the root not counted."""
        return min(self.total_tokens - 1, self.candidates)

    @property
    def slots(self) -> int:
        """Rows that a draft's cache needs behind the committed ones."""
        return max(self.depth * self.top_k, self.depth + 2)

    def sized(self, total_tokens: int) -> "TreeConfig":
        """The same with another ``total_tokens``."""
        return replace(self, total_tokens=total_tokens)
