"""What a conversation of several turns costs: which tokens the engine computes anew, and the seconds. It is pure arithmetic.

With each question the page sends the whole conversation. The engine computes what comes after the tokens with which this prompt and a
cache begin alike (tools/server/server-context.cpp and server-task.cpp of the pinned engine):

- A slot keeps the last prompt and its answer, but for the last token of the answer, which is never computed.
- The chat template of a model that thinks leaves the thoughts out of earlier answers. So prompt and cache differ from the last answer on,
  and what was said in it is computed anew, as a prompt. The cache is good for the prompt before it.
- Another conversation takes the slot, or asks in the slot beside it. Then the engine copies the cache of the slot to RAM (`--cache-ram`).
  It takes a copy back if a quarter of it or more is of use.
- With `--cache-reuse N` the engine moves pieces of N or more tokens that prompt and cache have in common, although other tokens stand
  before them. What was said is then computed with the thoughts in view, and the answers after it differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from r1prov.common.units import MIB, span
from r1prov.machines.workload import SAID
from r1prov.offload.costs import costs
from r1prov.offload.memory import cache_bytes_per_token, context_per_slot
from r1prov.offload.speed import DEFAULT

if TYPE_CHECKING:
    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.costs import Costs
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting
    from r1prov.offload.speed import Speeds
    from r1prov.offload.waits import Range

TURNS = 10
"""The turns of a conversation, where so many fit in a slot."""

LEAST = 2
"""The fewest conversations for which there must be room in RAM: one that comes back, and one that goes there in its place."""

CONVERSATIONS = 8
"""The conversations of a day to which each person comes back. This is an assumption."""

CELL_BYTES = 12
"""The bytes of a copy that say where a token stands (llama_kv_cache::state_write_meta)."""

OF_USE = 0.25
"""The least share of a copy in RAM that must be of use, or else the engine leaves it there (server_prompt_cache::load)."""


class Kept(Enum):
    """Where the cache of a conversation lies when its next question comes."""

    SLOT = "slot"
    RAM = "ram"
    NOWHERE = "nowhere"


@dataclass(frozen=True)
class Talk:
    """The tokens of a conversation.

    Attributes:
        first: The first question, with all that stands before it.
        question: Each further question.
        thought: The part of an answer that the next prompt leaves out.
        said: The part of an answer that the next prompt repeats.
        turns: The number of questions.
    """

    first: int
    question: int
    thought: int
    said: int
    turns: int = TURNS

    @property
    def answer(self) -> int:
        """The tokens of each answer."""
        return self.thought + self.said

    def prompt(self, turn: int) -> int:
        """The tokens of a prompt; the first turn is 0."""
        return self.first + turn * (self.said + self.question)

    def held(self, turn: int) -> int:
        """The tokens in the slot after a turn."""
        return self.prompt(turn) + self.answer - 1

    def computed(self, turn: int, kept: Kept, setting: Setting) -> int:
        """The tokens of a prompt that the engine computes."""
        prompt = self.prompt(turn)
        if turn == 0 or kept is Kept.NOWHERE or not setting.cache_prompt:
            return prompt
        held = self.held(turn - 1)
        alike = self.prompt(turn - 1) if self.thought else held
        if kept is Kept.RAM and alike < OF_USE * held:
            return prompt
        if self.thought and setting.cache_reuse and self.said - 1 >= setting.cache_reuse:
            alike += self.said - 1
        return prompt - alike


@dataclass(frozen=True)
class Course:
    """What a conversation comes to, turn by turn.

    Attributes:
        kept: Where the cache lies between the turns.
        computed: The tokens of each prompt that are computed.
        first_token: The seconds until each answer begins.
        end: The seconds until each answer is whole.
    """

    kept: Kept
    computed: tuple[int, ...]
    first_token: tuple[Range, ...]
    end: tuple[Range, ...]

    @property
    def further_first_token(self) -> Range:
        """The mean seconds until an answer begins, without the first."""
        further = self.first_token[1:] or self.first_token
        slow, fast = (sum(each) / len(further) for each in zip(*further, strict=True))
        return slow, fast

    @property
    def whole(self) -> Range:
        """The seconds of all turns together, in which nobody reads or writes."""
        slow, fast = map(sum, zip(*self.end, strict=True))
        return slow, fast


@dataclass(frozen=True)
class Conversation:
    """What a conversation costs with one setting.

    Attributes:
        talk: Its tokens.
        courses: What it comes to, by where its cache lies between the turns.
    """

    talk: Talk
    courses: tuple[Course, ...]


def talk_of(workload: Workload, model: Model, context: int) -> Talk:
    """The conversation that the exchanges of a workload are parts of, with as many turns as fit in a slot of `context` tokens.

    It begins with the most frequent exchange that has nothing in the cache, and goes on with the most frequent one that has. The new tokens
    of the latter repeat what was said in the last answer, where the model thinks, and end with the question.
    """
    by_share = sorted(workload.exchanges, key=lambda exchange: -exchange.share)
    fresh = next((each for each in by_share if not each.cached), by_share[0])
    further = next((each for each in by_share if each.cached), fresh)
    said, question = further.answer, further.prompt
    if model.thinks:
        said = min(SAID, said)
        if further.cached and further.answer > said:
            said = min(said, question - 1)
            question -= said
    talk = Talk(fresh.cached + fresh.prompt, question, further.answer - said, said)
    room = context - talk.first - talk.answer
    return Talk(
        talk.first,
        talk.question,
        talk.thought,
        talk.said,
        turns=min(max(1 + room // (talk.said + talk.question), 1), TURNS),
    )


def conversation(
    model: Model, setting: Setting, cards: tuple[int, ...], workload: Workload, speeds: Speeds = DEFAULT
) -> Conversation:
    """What a conversation costs that is alone with the engine, for each place where its cache may lie between the turns.

    Args:
        model: The model.
        setting: The arguments.
        cards: The bytes of each card.
        workload: What people ask for.
        speeds: How fast the machine is.
    """
    found = costs(model, setting, cards, speeds)
    talk = talk_of(workload, model, context_per_slot(model, setting))
    kept = [Kept.SLOT, Kept.RAM, Kept.NOWHERE] if setting.prompts else [Kept.SLOT, Kept.NOWHERE]
    return Conversation(talk, tuple(course(model, setting, found, talk, each) for each in kept))


def course(model: Model, setting: Setting, found: Costs, talk: Talk, kept: Kept) -> Course:
    """What a conversation comes to if its cache lies there between the turns. `found` are the costs of the model with this setting."""
    to_ram = found.speeds.link_bytes_per_second if found.cards else found.speeds.ram_bytes_per_second
    computed: list[int] = []
    first_token: list[Range] = []
    end: list[Range] = []
    for turn in range(talk.turns):
        # What lies in the slot is copied to RAM before what lay there comes back, so there must be room for both.
        both = 2 * state_bytes(model, setting, talk.held(turn - 1)) if kept is Kept.RAM and turn else 0
        where = Kept.NOWHERE if both > setting.prompts else kept
        prompt, new = talk.prompt(turn), talk.computed(turn, where, setting)
        moved = both if new < prompt else 0
        begun = [moved / to_ram.at(which) + found.prompt_seconds(new, prompt - new, 1, which) for which in (0, 1)]
        depth = prompt + talk.answer / 2
        done = [begun[which] + talk.answer * found.token_seconds(1, depth, which) for which in (0, 1)]
        computed.append(new)
        first_token.append((begun[0], begun[1]))
        end.append((done[0], done[1]))
    return Course(kept, tuple(computed), tuple(first_token), tuple(end))


def state_bytes(model: Model, setting: Setting, tokens: int) -> int:
    """The bytes of a copy of a slot's cache that holds so many tokens."""
    return tokens * (cache_bytes_per_token(model, setting) * model.layers + CELL_BYTES)


def past_prompts(model: Model, setting: Setting, space: Space, workload: Workload, room: int) -> tuple[int, str]:
    """The bytes of RAM for the caches of past prompts in whole MiB, and the reason in words that go on `because`.

    There is room for the conversations of a day to which people come back, where such a conversation goes on sooner from RAM than from
    nothing. They take at most half of the RAM that is left.

    Args:
        model: The model that is served.
        setting: The setting that places it.
        space: The cards and the RAM, and how fast they are.
        workload: What people ask for. Each of those who ask at once has conversations of their own.
        room: The bytes of RAM that nothing else needs.
    """
    talk = talk_of(workload, model, context_per_slot(model, setting))
    one = state_bytes(model, setting, talk.held(talk.turns - 1))
    wanted = CONVERSATIONS * workload.people
    most = max(room, 0) // 2  # The system keeps files in the rest, and `tune` tries micro-batches that need more.
    possible = most // one
    found = costs(model, setting, space.cards, space.speeds)
    unlimited = replace(setting, prompts=one * wanted)
    from_ram, anew = (course(model, unlimited, found, talk, kept) for kept in (Kept.RAM, Kept.NOWHERE))
    slow, fast = (lost - kept for lost, kept in zip(anew.whole, from_ram.whole, strict=True))
    if talk.turns == 1:
        return 0, "a slot holds one question and its answer only"
    if slow <= 0:
        return 0, "a conversation that comes back from RAM would go on no sooner than one that is computed anew"
    if possible < LEAST:
        needed = f"{LEAST} conversations take {LEAST * one // MIB:,} MiB"
        return 0, f"{needed}, and half of the RAM that is left is {most // MIB:,} MiB"
    sooner = (
        "a conversation that comes back from there saves"
        f" {span(fast / (talk.turns - 1), slow / (talk.turns - 1))} s at each of its questions"
    )
    if possible < wanted:
        return most // MIB * MIB, f"half of the RAM that is left holds {possible} conversations, and {sooner}"
    return -(-one * wanted // MIB) * MIB, f"it holds {wanted} conversations, and {sooner}"
