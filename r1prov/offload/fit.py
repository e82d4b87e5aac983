"""Foresees what the engine's own `--fit` chooses at its start (common/fit.cpp of the pinned engine), where the context is given.

It leaves 1 GiB free on each card. First it gives layers to the cards, from the last card to the first; of a model with experts, layers
whose experts lie in RAM. Where all of those fit, it makes them whole, from the first card to the last, and each card takes a part of one
layer more. How many layers fit is found by false position, which stops at the first number that does. Only the same steps come to the
same numbers, so this module takes them too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.offload.memory import memory
from r1prov.offload.outcome import FIT_RESERVE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.setting import Setting

_EXPERTS_LEAVE = r"\.ffn_(up|down|gate_up|gate)_(ch|)exps"
_ATTENTION_STAYS = r"\.ffn_(gate|up|gate_up|down).*"
_UP_STAYS = r"\.ffn_(gate|gate_up|down).*"
_GATE_STAYS = r"\.ffn_down.*"
"""The patterns of what leaves a layer's card, as the engine writes them, where all but experts stays, or attention alone, with `up`, or
with `gate` too."""


@dataclass(frozen=True)
class _Share:
    """The layers of one card.

    Attributes:
        layers: Their number.
        partial: The number of those, the last ones, of which some tensors lie elsewhere.
        leaves: The pattern of what leaves the first of these. Of the others the experts lie in RAM.
        to: The card where that goes; None for RAM.
    """

    layers: int = 0
    partial: int = 0
    leaves: str = _EXPERTS_LEAVE
    to: int | None = None

    @property
    def full(self) -> int:
        return self.layers - self.partial

    def plus(self, layers: int, partial: int) -> _Share:
        return replace(self, layers=self.layers + layers, partial=self.partial + partial)


_Shares = tuple[_Share, ...]
_State = tuple[_Shares, int]
"""The shares of the cards, and the first card that has partial layers to give away."""


def fitted(model: Model, wanted: Setting, cards: Sequence[int]) -> Setting:
    """The setting with the placement that `--fit` chooses, where all memory of the cards is free.

    Args:
        model: The model.
        wanted: The setting, of which the context is given. Its placement does not count.
        cards: The memory of each card.
    """
    fit = _Fit(model, replace(wanted, gpu_layers=None, split=(), overrides=()), tuple(cards))
    if not cards or all(taken <= target for taken, target in zip(fit.taken_by(fit.wanted), fit.targets, strict=True)):
        return fit.wanted
    shares = fit.filled()
    dense = replace(fit.wanted, overrides=((r"blk\.\d+" + _EXPERTS_LEAVE, None),))
    if model.experts_used and sum(fit.taken_by(dense)) < sum(fit.targets):
        shares = fit.made_whole(shares)
    return fit.setting(shares)


@dataclass(frozen=True)
class _Fit:
    """The steps of `--fit` for one model on some cards."""

    model: Model
    wanted: Setting
    cards: tuple[int, ...]

    @property
    def targets(self) -> list[int]:
        return [card - FIT_RESERVE_BYTES for card in self.cards]

    @property
    def last(self) -> int:
        return len(self.cards) - 1

    def taken_by(self, setting: Setting) -> list[int]:
        return [use.total for use in memory(self.model, setting, self.cards).cards]

    def taken(self, shares: _Shares) -> list[int]:
        return self.taken_by(self.setting(shares))

    def setting(self, shares: _Shares) -> Setting:
        """The setting in which each card has its share."""
        n_layers = sum(share.layers for share in shares)
        overrides: list[tuple[str, int | None]] = []
        layer = self.model.entries - n_layers
        for share in shares:
            layer += share.full
            for number in range(share.partial):
                leaves, to = (share.leaves, share.to) if number == 0 else (_EXPERTS_LEAVE, None)
                overrides.append((rf"blk\.{layer + number}{leaves}", to))
            layer += share.partial
        split = tuple(float(share.layers) for share in shares) if self.last else ()
        return replace(self.wanted, gpu_layers=n_layers, split=split, overrides=tuple(overrides))

    def filled(self) -> _Shares:
        """As many layers as fit; of a model with experts, layers whose experts lie in RAM."""
        shares: _Shares = (_Share(),) * len(self.cards)
        for card in reversed(range(len(self.cards))):
            left = self.model.entries - sum(share.layers for share in shares)

            def more(state: _State, count: int, card: int = card) -> _State:
                base, start = state
                # The output is the last entry, and always whole.
                output = card == self.last and not base[card].partial
                partial = count - output if self.model.experts_used else 0
                return _with(base, card, base[card].plus(count, partial)), start

            if left:
                shares, _ = self._most(card, (shares, 0), more((shares, 0), left), more, lambda share: share.layers)
        return shares

    def made_whole(self, shares: _Shares) -> _Shares:
        """As many layers as fit get their experts back, on the first cards."""
        state = shares, next(card for card in range(len(shares)) if all(share.layers for share in shares[card:]))
        for card in range(len(self.cards)):
            if not card <= state[1] <= self.last:
                break

            def more(state: _State, count: int, card: int = card) -> _State:
                return _moved(state, card, count)

            everything = state[0]
            for giver in range(state[1], len(self.cards)):
                count = everything[giver].layers - (giver == self.last)
                everything = _with(everything, giver, replace(everything[giver].plus(-count, 0), partial=0))
                everything = _with(everything, card, everything[card].plus(count, 0))
            state = self._most(card, state, (everything, self.last), more, lambda share: share.full)
            state = self._with_a_part(card, state)
        return state[0]

    def _most(
        self,
        card: int,
        low: _State,
        high: _State,
        more: Callable[[_State, int], _State],
        counted: Callable[[_Share], int],
    ) -> _State:
        """The state between `low`, which fits, and `high` that gives a card the most, by false position.

        Args:
            card: The card.
            low: A state that fits.
            high: The state in which the card gets all that is left.
            more: Gives the card so many layers more than a state.
            counted: Which layers of the card are counted.
        """
        target, taken, taken_high = (self.targets[card], self.taken(low[0])[card], self.taken(high[0])[card])
        if taken_high <= target:
            return high
        while (delta := counted(high[0][card]) - counted(low[0][card])) > 1:
            step = int(delta * (target - taken) / (taken_high - taken))  # The engine's division cuts off.
            step = delta - 1 if step < 0 else min(max(step, 1), delta - 1)
            test = more(low, step)
            taken_test = self.taken(test[0])[card]
            if taken_test <= target:
                low, taken = test, taken_test
            else:
                high, taken_high = test, taken_test
        return low

    def _with_a_part(self, card: int, state: _State) -> _State:
        """The state with as much of one more layer on a card as fits. The rest goes to the next card, from the last one to RAM."""
        shares, start = state
        if start > self.last or not shares[start].partial:
            return state
        shares = _with(shares, start, shares[start].plus(-1, -1))
        shares = _with(shares, card, shares[card].plus(1, 1))
        following = start + (not shares[start].partial), card + 1 if card < self.last else None

        def tried(leaves: str) -> _State | None:
            parted = _with(shares, card, replace(shares[card], leaves=leaves, to=following[1]))
            both = list(zip(self.taken(parted), self.targets, strict=True))[card : card + 2]
            return (parted, following[0]) if all(taken < target for taken, target in both) else None

        with_up = tried(_UP_STAYS)
        return (tried(_GATE_STAYS) or with_up) if with_up else (tried(_ATTENTION_STAYS) or state)


def _with(shares: _Shares, card: int, share: _Share) -> _Shares:
    return (*shares[:card], share, *shares[card + 1 :])


def _moved(state: _State, card: int, count: int) -> _State:
    """The state in which so many partial layers have become whole layers of a card, those of the first cards that have some."""
    shares, start = state
    while start < len(shares):
        few = min(count, shares[start].partial)
        count -= few
        shares = _with(shares, start, shares[start].plus(-few, -few))
        shares = _with(shares, card, shares[card].plus(few, 0))
        if shares[start].partial:
            break
        start += 1
    return shares, start
