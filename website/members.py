"""The page of each member, made from the registries, the docstrings and the signatures."""

import inspect
import re
from pathlib import Path
from typing import Any

import torch

import emo_torch
from emo_optax._members.by_name import MEMBERS as IN_OPTAX
from emo_torch._members.by_name import MEMBERS as IN_TORCH
from website.links import DOCS

SECOND_GENERATION = "the second generation (v2.0 of the published code)"
GENERATIONS = {
    1: "the first generation of the published optimizers",
    2: SECOND_GENERATION,
    3: "the third generation (v3.9.1 of the published code)",
    None: "no generation",
}
OURS = ("emo_pilot", "emo_pilot_airy")
WHEN = {
    "emo_pilot": "You do not want to tune a learning rate. Start with the default; it is ours, and new.",
    "emo_pilot_airy": "As EmoPilot, with a third less state. Start with the default; it is ours, and new.",
    "emo_sens": "You would take AdamW, and want the published second generation. Start with 1e-3; "
    "set `gain=0.05` in runs of a few hundred steps.",
    "emo_airy": "Memory is short. Start with a learning rate of 1e-3; up to 3e-3 in short runs.",
    "emo_cats": "You would take Lion. Start with a learning rate of 3e-4 to 1e-3.",
    "emo_navi": "You want the first generation with Adam's moments, as it was. Start with 1e-3.",
    "emo_fact": "You want the first generation with factored moments, as it was. Start with 1e-3.",
    "emo_lynx": "You want the first generation with Lion's rule, as it was. Start with 1e-3.",
    "emo_clan": "You want the rule itself to follow the loss. Start with 1e-3.",
    "emo_neco": "You want the rule to follow the loss, with one momentum as its state. Start with 1e-3.",
    "emo_zeal": "You want the rule to follow the loss, with little memory for matrices. Start with 1e-3.",
    "emo_sens3": "You want the third generation with Adam's moments. Keep the scope (`lr`) at 1.",
    "emo_airy3": "You want the third generation without any state per weight. Keep the scope at 1.",
    "emo_cats3": "You want the third generation with Lion's rule. Keep the scope at 1.",
    "emo_tion": "You want the third generation with a momentum that is faster where weights move. Scope 1.",
    "emo_void": "You want the third generation without state, and weights of a held norm. Scope 1.",
    "emo_navi36": "You continue a run of version 3.6.1 of EmoNavi. Start with 6e-5.",
    "emo_fact36": "You continue a run of version 3.6.1 of EmoFact. Start with 1e-4.",
    "emo_lynx36": "You continue a run of version 3.6.1 of EmoLynx. Start with 8e-5.",
    "ref_adamw_mini_schedule_free": "You want it as it was published. It has no emotion.",
}
"""When to take a member, and where to start; without an entry, the first line of its docstring is taken."""


def in_order() -> list[str]:
    """Returns the names of all members, ours first, then as in the registry."""
    return [*OURS, *(name for name in IN_TORCH if name not in OURS)]


def make_in_optax(name: str) -> Any:
    """Returns the function of `emo_optax` that makes a member."""
    return IN_OPTAX[name].make


def state_per_weight(name: str) -> float:
    """Returns how many numbers a member keeps per weight, measured on a matrix of 256 x 256 in PyTorch."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(256, 256))
    optimizer = emo_torch.create_optimizer(name, [weight])
    weight.grad = torch.randn(256, 256)
    optimizer.step(loss=1.0)
    kept = [value.numel() for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    return sum(kept) / weight.numel()


def more_state(name: str) -> str:
    """Returns a sentence on the options that keep more per weight."""
    known = inspect.signature(IN_TORCH[name].make.__init__).parameters
    options = [
        words
        for key, words in (("use_shadow", "`use_shadow=True`"), ("rounding", '`rounding="kahan"`'))
        if key in known
    ]
    fewer = " With `average=False` it is one fewer." if "average" in known else ""
    return (f"One more each with {' and '.join(options)}." if options else "") + fewer


def said(number: float) -> str:
    """Returns a number of values per weight in words."""
    if number < 0.001:
        return "none"
    if number < 0.1:
        return "almost none (one number a row and one a column)"
    return f"{number:.3g}"


def formula(thing: Any) -> str:
    """Returns a docstring up to its arguments: one sentence, the formula, and the text about both."""
    text = inspect.getdoc(thing) or ""
    return re.split(r"^(?:Args|Example|Attributes|Raises|Returns|Source):?", text, flags=re.MULTILINE)[0]


def shown(default: Any) -> str:
    """Returns a default as a reader would write it."""
    if default is inspect.Parameter.empty:
        return "required"
    if inspect.isclass(default) or callable(default):
        return f"`{getattr(default, '__name__', default)}`"
    return f"`{default!r}`"


def defaults(name: str) -> str:
    """Returns the table of a member's arguments with their defaults in both packages."""
    sides = (IN_TORCH[name].make.__init__, make_in_optax(name))
    ours = [
        {key: each.default for key, each in inspect.signature(side).parameters.items() if key != "self"}
        for side in sides
    ]
    same = {"lr": "learning_rate"}
    rows = ["| in PyTorch | default | in Optax | default |", "|---|---|---|---|"]
    taken = set()
    for key, default in ours[0].items():
        twin = key if key in ours[1] else same.get(key, "")
        twin = twin if twin in ours[1] else ""
        taken.add(twin)
        theirs = (f"`{twin}`", shown(ours[1][twin])) if twin else ("", "")
        rows.append(f"| `{key}` | {shown(default)} | {theirs[0]} | {theirs[1]} |")
    rows += [f"| | | `{key}` | {shown(value)} |" for key, value in ours[1].items() if key not in taken]
    return "\n".join(rows)


def differences(title: str) -> str:
    """Returns the rows of `docs/differences.md` that name a member."""
    lines = (DOCS / "differences.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and re.search(rf"\b{title}\b", line)]
    if not rows:
        return ""
    return "\n".join(["| published | here | why |", "|---|---|---|", *rows, ""])


def page(name: str) -> str:
    """Returns the page of a member, in MyST Markdown."""
    member = IN_TORCH[name]
    title = member.make.__name__
    when = WHEN.get(name, (inspect.getdoc(member.make) or "").partition("\n")[0])
    picture = DOCS / "members" / f"{name}.png"
    parts = [
        f"# {title}",
        f"Belongs to {GENERATIONS[member.generation]}."
        if member.generation
        else "Belongs to no generation of the published code.",
        "## When",
        when,
        "## Formula",
        f"```{{eval-rst}}\n{formula(member.make)}\n```",
        "## Use",
        f"- PyTorch: {{py:class}}`emo_torch.{title}`, "
        f'`emo_torch.create_optimizer("{name}", model.parameters())`',
        f'- Optax: {{py:func}}`emo_optax.{name}`, `emo_optax.create_optimizer("{name}")`',
        "## State per weight",
        f"Numbers per weight of a matrix of 256 x 256: {said(state_per_weight(name))}. {more_state(name)}",
    ]
    if picture.exists():
        parts += [
            "## A run",
            f"![Loss of {title} and of AdamW over 300 steps, and what {title} makes of it]({name}.png)",
            "The loss of a network 8-32-1 on noisy batches over 300 steps, with the default options, and "
            "AdamW's for comparison. Pale: each batch; full colour: the mean of the last 20 batches. A "
            "circle marks the start, a square and its value the end. A second panel shows what the member "
            "makes of the loss. Such a short run does not say which optimizer is better: see [quality of "
            "training](../quality_of_training.md). Drawn by `python -m website.pictures`.",
        ]
    parts += ["## Defaults", defaults(name), "## Differences from the published code"]
    known = differences(title)
    if known:
        parts.append(known)
    if name in OURS:
        parts.append(f"There is no published code: {title} is ours.")
    else:
        parts.append("[All differences](../differences.md), those of every member included.")
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """Returns the start of the section: a table of all members."""
    rows = ["| member | generation | numbers per weight | take it when |", "|---|---|---|---|"]
    for name in in_order():
        member = IN_TORCH[name]
        when = WHEN.get(name, "")
        rows.append(
            f"| [{member.make.__name__}]({name}.md) | {member.generation or '-'} "
            f"| {said(state_per_weight(name)).partition(' (')[0]} | {when} |"
        )
    text = "# A page for each member\n\nThis table is made from the registry. "
    text += "[Which member when](../members.md) says more.\n\n"
    return text + "\n".join(rows) + "\n"


def write(folder: Path) -> list[str]:
    """Writes the pages of all members below a folder, and returns their paths relative to it."""
    (folder / "members").mkdir(parents=True, exist_ok=True)
    (folder / "members/index.md").write_text(overview())
    for name in in_order():
        (folder / f"members/{name}.md").write_text(page(name))
    return ["members/index.md", *(f"members/{name}.md" for name in in_order())]
