"""Shows a plan or an outcome to people: a row and a bar for each device, its contents, what a token reads, and the baselines."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING

from r1prov import output
from r1prov.common.units import GB, GIB, gib, span
from r1prov.offload import speed
from r1prov.offload.conversation import Kept
from r1prov.offload.memory import context_of, context_per_slot, placement
from r1prov.offload.setting import card_name, slots_in_words
from r1prov.offload.speed import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.compare import Alternative
    from r1prov.offload.conversation import Conversation, Course
    from r1prov.offload.foresight import ForeseenArguments, ForeseenPlan, Measured
    from r1prov.offload.outcome import Device, Outcome
    from r1prov.offload.plan import Plan
    from r1prov.offload.setting import Setting
    from r1prov.offload.trade import Choice
    from r1prov.offload.waits import Day, Wait

BAR = 16
BESIDE_LAYERS = {"token embedding": "token_embd", "output": "output"}
LEGEND = "w weights, k KV cache, c compute buffer, r reserve, . free\nreads: GB that a token of a full slot reads"


def plan(foreseen: ForeseenPlan) -> None:
    """Shows a plan, its contents, the trade, the commands for it, and the baselines."""
    model, found, alternatives = foreseen.model, foreseen.plan, foreseen.alternatives
    slots = slots_in_words(found.slots)
    output.line(f"{_named(model)}, {gib(found.model_bytes)}, {slots} of {found.context_per_slot:,} tokens")
    output.line()
    assert found.outcome  # noqa: S101 - for the type checker: only plans of models with known layers are shown
    _devices(found.outcome)
    cards = [device.capacity for device in found.outcome.devices]
    output.line()
    columns = ("device", "layers", *(("all experts of", "some experts of") if model.experts_used else ()))
    output.table(columns, list(_contents(model, found, cards)))
    _decoding(found.outcome)
    _copies(model, found.setting, found.outcome)
    _day(foreseen.day, found.outcome)
    _conversation(foreseen.talk, found.outcome)
    if found.outcome.fits:
        _trade(foreseen.trade, cards=bool(cards))
    if found.quant_reason:
        output.line(f"{found.quant}, because {found.quant_reason}.")
    if found.slots_reason:
        output.line(f"{slots.capitalize()}, because {found.slots_reason}.")
    if found.context_reason:
        output.line(f"{found.context_per_slot:,} tokens for each, because {found.context_reason}.")
    if found.outcome.fits:
        prompts = f"{gib(found.setting.prompts)} of RAM" if found.setting.prompts else "No RAM"
        output.line(f"{prompts} for past prompts (--cache-ram), because {found.prompts_reason}.")
    hopeless = f"No small change would make it fit: the machine is too small for {_named(model)}."
    _verdict(found.outcome, "r1prov plan", alternatives, hopeless if _certainly_large(model, found.outcome) else "")
    if found.outcome.fits:
        environment = (f"{name}={value}" for name, value in found.environment.items())
        output.line()
        output.command((*environment, "llama-server", *found.arguments))
    if cards and not found.setting.lent:
        whole = "" if found.ollama.gpu_layers == model.entries else ", whose cache is F16 and layers whole"
        output.line(f"Ollama{whole}: num_gpu {found.ollama.gpu_layers}, num_batch {found.ollama.micro_batch}")
    if found.setting.lent:
        _pool(foreseen)
    if foreseen.baselines:
        output.line()
        rows = [("this plan", found.outcome), *((other.name, other.outcome) for other in foreseen.baselines)]
        output.table(
            ("on the same machine", "GB from RAM>", "tokens/s>", "what it would do"),
            [(name, f"{each.reads.host / GB:.2f}", _rate(each), _end(each)) for name, each in rows],
        )
        output.line(f"Each of these has {slots} of {found.context_per_slot:,} tokens.")


def _pool(foreseen: ForeseenPlan) -> None:
    """Compares a pool with one of its hosts, and proposes what is faster."""
    crossing, ours, alone = foreseen.outcome.speeds.crossing, foreseen.day, foreseen.alone
    assert crossing  # noqa: S101 - for the type checker: cards are lent
    output.line()
    lent = f"RPC0 to RPC{crossing.lent - 1} are" if crossing.lent > 1 else "RPC0 is"
    hosts = f"{crossing.workers} more of these hosts" if crossing.workers > 1 else "another one of these hosts"
    output.line(f"{lent} lent by {hosts}, over {crossing.detail}.")
    if not alone:
        output.line("One of these hosts by itself does not hold this model with so long slots.")
        return
    pool, one = (span(*reversed(day.mean)) for day in (ours, alone))
    output.line(f"An exchange takes {pool} s in the mean, and {one} s on one of these hosts by itself.")
    if alone.mean[0] < ours.mean[0]:
        output.line(
            "So one host is faster than the pool: use a profile of one host, and let the others serve by themselves, too."
        )


def _copies(model: Model, setting: Setting, found: Outcome) -> None:
    """Shows how long a prompt waits for experts that lie in RAM."""
    waits = speed.prompt_copies_seconds(model, setting, [device.capacity for device in found.devices], found.speeds)
    if not waits or not found.fits:
        return
    batch, link = setting.micro_batch, found.speeds.link_bytes_per_second
    by = f" by {link.detail} ({link.origin})" if link.detail else ""
    by = ", by measured speeds" if link.origin is Origin.MEASURED else by
    output.line(f"A prompt waits {waits:.1f} s per {batch:,} tokens while experts go from RAM to CUDA0{by}.")


def _named(model: Model) -> str:
    return f"{model.name} in MLA form" if model.mla else model.name


def explained(foreseen: ForeseenArguments, found: Outcome, day: Day) -> None:
    """Shows the outcome of arguments: what each device takes, whether it fits, and how fast it would be."""
    model, alternatives, hopeless = foreseen.model, foreseen.alternatives, not foreseen.fits_in_mla_form
    sentence = f"It fits in no placement and with no context: the machine is too small for {_named(model)}."
    setting = foreseen.setting
    assert setting  # noqa: S101 - for the type checker: there is an outcome only where the engine would start
    each = f"of {context_per_slot(model, setting):,} tokens"
    shared = f"with {context_of(model, setting):,} tokens together"
    tokens = shared if setting.unified and setting.slots > 1 else each
    output.line(f"{_named(model)}, {gib(model.n_bytes)}, {slots_in_words(setting.slots)} {tokens}")
    output.line()
    _devices(found)
    _decoding(found)
    _copies(model, setting, found)
    _day(day, found)
    _conversation(foreseen.talk, found)
    _verdict(found, "llama-server", alternatives, sentence if hopeless and _certainly_large(model, found) else "")


def _certainly_large(model: Model, found: Outcome) -> bool:
    """Whether a search that finds no placement proves that there is none: upper bounds prove it only where the weights do."""
    return found.exact or model.n_bytes > sum(
        device.capacity - device.reserve for device in (*found.devices, found.host)
    )


def refusal(reason: str, alternatives: Sequence[Alternative]) -> None:
    """Shows why the engine would not start, and arguments with which it would."""
    output.line(f"llama-server would not start: {reason}")
    _instead("it would start", "llama-server", alternatives)


def _devices(found: Outcome) -> None:
    columns = ("GiB", "weights>", "KV>", "compute>", "reserve>", "free>", "of>", "reads>", "")
    both = zip((*found.devices, found.host), (*found.reads.cards, found.reads.host), strict=True)
    output.table(columns, [_row(device, n_bytes) for device, n_bytes in both])
    output.line(LEGEND)


def _row(device: Device, reads: int) -> tuple[str, ...]:
    free = device.free - device.reserve
    figures = (device.weights, device.kv, device.compute, device.reserve, free, device.capacity)
    return (device.name, *(f"{figure / GIB:.1f}" for figure in figures), f"{reads / GB:.2f}", _bar(device))


def _bar(device: Device) -> str:
    """A bar of the device's contents, to scale, with at least one cell for each part.

    If the contents do not fit, the bar shows them all, without a reserve.
    """
    whole = max(device.capacity, device.taken, 1)
    reserve = min(device.reserve, max(device.free, 0))
    parts = {"w": device.weights, "k": device.kv, "c": device.compute, "r": reserve}
    parts["."] = whole - sum(parts.values())
    cells = {sign: max(round(BAR * size / whole), sign != ".") for sign, size in parts.items() if size}
    while (over := sum(cells.values()) - BAR) != 0:
        cells[max(cells, key=cells.__getitem__)] -= over // abs(over)
    return "".join(sign * count for sign, count in cells.items())


def _decoding(found: Outcome) -> None:
    if found.fits:
        (ram, ram_most), (card, card_most) = (
            (f"{each.low / GB:.3g}", f"{each.high / GB:.3g}")
            for each in (found.speeds.ram_bytes_per_second, found.speeds.card_bytes_per_second)
        )
        from_cards = f" and {card} to {card_most} GB/s from a card, one device after the other" if found.devices else ""
        speeds = {found.speeds.ram_bytes_per_second.origin, found.speeds.card_bytes_per_second.origin}
        how = "by measured speeds" if Origin.MEASURED in speeds else "not measured"
        output.line()
        output.line(
            f"Decoding: {_rate(found)} tokens/s, {how}: these bytes at {ram} to {ram_most} GB/s from RAM{from_cards}."
        )


SPEEDS = {
    "ram_bytes_per_second": ("from RAM, GB/s", GB),
    "card_bytes_per_second": ("from a card, GB/s", GB),
    "link_bytes_per_second": ("RAM to card, GB/s", GB),
    "card_operations_per_second": ("a card, 10^12/s", 10**12),
    "cpu_operations_per_second": ("the CPU, 10^12/s", 10**12),
}
"""How people are told of each speed, and its unit: bytes that are read or copied, and products that are computed."""


def measured(found: Outcome, beside: Measured) -> None:
    """Shows the speeds that were measured on a host, beside those of the plan, and what the plan comes to with them."""
    rows = []
    for name, (what, unit) in SPEEDS.items():
        ours, theirs = getattr(found.speeds, name), getattr(beside.speeds, name)
        if theirs.origin is Origin.MEASURED:
            planned, told = (span(each.low / unit, each.high / unit) for each in (ours, theirs))
            rows.append((what, planned, told, theirs.detail))
    output.line()
    output.table((f"measured on {beside.host}", "planned>", "measured>", "by"), rows)
    if found.fits:
        rates, mean = span(*beside.tokens_per_second), span(*reversed(beside.day.mean))
        output.line(f"With these speeds the plan decodes {rates} tokens/s, and in the mean an exchange takes {mean} s.")


def _day(day: Day, found: Outcome) -> None:
    """Shows what each exchange of the workload waits for."""
    if not found.fits:
        return
    output.line()
    output.line(f"Workload {day.workload.description} (not measured):")
    columns = ("share>", "cached>", "new>", "answer>", "people>", "first token s>", "end s>", "tokens/s>", "all>")
    output.table(columns, [_wait(wait, day.workload.weight(wait.exchange)) for wait in day.waits])
    longest = max(day.waits, key=lambda wait: wait.copying[0])
    if longest.copying[0]:
        copies, new = span(*reversed(longest.copying)), longest.exchange.prompt
        output.line(f"{copies} s of the first token behind {new:,} new ones are copies from RAM to CUDA0.")
    begins, ends = (span(*reversed(each)) for each in (day.first_token, day.mean))
    output.line(f"In the mean an answer begins after {begins} s, and an exchange takes {ends} s.")
    output.line()


FEW_CHOICES = 3
"""With fewer placements it is said why there are no more."""


def _trade(choices: Sequence[Choice], *, cards: bool) -> None:
    """Shows the placements among which the plan chose."""
    if not cards:
        output.line("There is no trade: without cards all of the model lies in RAM, whatever people ask for.")
        output.line()
        return
    output.line("The trade, of placements that fit (not measured):")
    columns = ("", "slots>", "ubatch>", "first s>", "mean s>", "alone>", "all>", "GB>")
    output.table(columns, [_of_choice(choice) for choice in choices])
    output.line("first: the longest wait for a first token; mean: until an answer is whole")
    output.line("alone: tokens/s of one person; all: of one at each slot; GB: from RAM")
    output.line("fastest: of placements with as many slots as this plan")
    if any("most users" in choice.names for choice in choices):
        output.line("most users: most tokens/s in all, of this plan's slots and powers of two above")
    if any({"more users", "fewer users"} & set(choice.names) for choice in choices):
        output.line("more users, fewer users: with other numbers of slots, for comparison")
    if len(choices) < FEW_CHOICES:
        output.line(
            "With slots of so many tokens no other placement that fits is faster for a prompt or a token, or gives more in all."
        )
    output.line()


def _of_choice(choice: Choice) -> tuple[str, ...]:
    setting = choice.setting
    return (
        ("* " if choice.chosen else "  ") + ", ".join(choice.names),
        str(setting.slots),
        f"{setting.micro_batch:,}",
        span(*reversed(choice.first_token)),
        span(*reversed(choice.mean)),
        span(*choice.alone),
        span(*choice.together),
        f"{choice.from_ram / GB:.2f}",
    )


def _wait(wait: Wait, weight: float) -> tuple[str, ...]:
    lengths = (wait.exchange.cached, wait.exchange.prompt, wait.exchange.answer, wait.exchange.at_once)
    times = (span(*reversed(wait.first_token)), span(*reversed(wait.end)))
    in_all = span(*wait.together) if wait.exchange.at_once > 1 else ""
    return (f"{weight:.0%}", *(f"{length:,}" for length in lengths), *times, span(*wait.each), in_all)


def _conversation(conversation: Conversation | None, found: Outcome) -> None:
    """Shows what a conversation costs, by where its cache lies between the turns."""
    if conversation is None or not found.fits:
        return
    talk = conversation.talk
    if talk.turns == 1:
        output.line("A slot holds one question and its answer, and no conversation.")
        output.line()
        return
    thought = f"{talk.thought:,} tokens of thought and {talk.said:,} said" if talk.thought else f"{talk.said:,} tokens"
    output.line(f"A conversation of {talk.turns} turns, where each answer has {thought} (not measured):")
    columns = ("its cache meanwhile", "computed anew>", "further first tokens s>", "answers in all s>")
    output.table(columns, [_course(course) for course in conversation.courses])
    output.line()


KEPT_IN = {Kept.SLOT: "stays in the slot", Kept.RAM: "comes back from RAM", Kept.NOWHERE: "is lost"}


def _course(course: Course) -> tuple[str, ...]:
    seconds = (span(*reversed(course.further_first_token)), span(*reversed(course.whole)))
    return (KEPT_IN[course.kept], f"{sum(course.computed):,}", *seconds)


def _rate(found: Outcome) -> str:
    """The decoded tokens per second as text; `-` where the model does not fit."""
    low, high = found.tokens_per_second
    return f"{low:.1f} to {high:.1f}" if found.fits else "-"


def _verdict(found: Outcome, command: str, alternatives: Sequence[Alternative], hopeless: str) -> None:
    for note in found.notes:
        output.line(f"{note}.")
    if found.fits:
        output.line("It fits.")
        return
    output.line(f"\nIt {'does' if found.sure else 'may'} not fit:")
    for reason in found.reasons:
        output.line(f"  {reason}")
    if hopeless and found.sure and not alternatives:
        output.line(hopeless)
    _instead("it would fit", command, alternatives)


def _instead(what: str, command: str, alternatives: Sequence[Alternative]) -> None:
    if alternatives:
        output.line(f"Add one of these to {command}, and {what}:")
        for each in alternatives:
            output.command(each.arguments, indent="  ")
            if each.without:
                output.line(f"    (and take out {', '.join(each.without)})")


def _end(found: Outcome) -> str:
    """`fits`, or the devices on which the model does not fit."""
    full = [device.name for device in (*found.devices, found.host) if device.free < 0]
    tight = [device.name for device in (*found.devices, found.host) if 0 <= device.free < device.reserve]
    perhaps = "" if found.sure else "perhaps "
    ends = [f"{perhaps}out of memory on {', '.join(full)}"] * bool(full) + [
        f"{perhaps}no reserve left on {', '.join(tight)}"
    ] * bool(tight)
    return "; ".join(ends) or "fits"


def _contents(model: Model, found: Plan, cards: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The rows of the table of contents: a device, its layers, the layers with all experts there, and with some there."""
    where = placement(model, found.setting, cards)
    experts: dict[int, list[int]] = defaultdict(list)  # layer -> devices of its experts
    for name, tensor in model.weights.items():
        if tensor.is_experts and tensor.layer is not None:
            experts[tensor.layer].append(where.tensors[name])
    names = [*(card_name(card, found.setting.lent) for card in range(len(cards))), "host"]
    for device, name in enumerate(names):
        layers = [layer for layer, its in enumerate(where.layers) if its == device]
        beside = [what for what, its in BESIDE_LAYERS.items() if where.tensors.get(f"{its}.weight") == device]
        whole = [layer for layer, devices in experts.items() if set(devices) == {device}]
        part = [layer for layer, devices in experts.items() if device in devices and layer not in whole]
        cells = ([*_ranges(layers), *beside], *((_ranges(whole), _ranges(part)) if experts else ()))
        yield (name, *(", ".join(cell) or "-" for cell in cells))


def _ranges(numbers: Sequence[int]) -> list[str]:
    """The runs of numbers as text, e.g. `0-3` and `7` for 0, 1, 2, 3, 7."""
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return runs
