"""A command whose --help fits a screen, and that answers an unknown option with the nearest one.

Options that are rarely needed are only named; `--help-all` explains them. `--smooth.rho 0.05` sets a setting of what
`--smooth` names; such options are taken out before the others are parsed.

Source: this project.  Checked against: every command's --help; options before and after the argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from typer.core import TyperCommand, TyperGroup

from letheon.errors import BadInput, nearest

DOTTED = "letheon.dotted"
"""Where the dotted options of a call are kept: ctx.meta[DOTTED] = [(setting, key, text)]."""
_SHOWS_ALL = "letheon.shows_all"
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@dataclass(frozen=True)
class Page:
    """What --help shows, and which options take settings of their own."""

    examples: tuple[str, ...]
    """At least two commands that can be copied."""
    sections: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Heading -> parameters; what stands in none comes under "Options"."""
    advanced: Sequence[str] = ()
    """Parameters that are only named."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Option that takes dotted ones, such as --smooth -> its setting."""
    short: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Option that is short for a dotted one: --bits -> (method, bits)."""
    rows: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """Heading -> (option, help) of options that are no parameters of the command."""
    all_rows: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """The same for --help-all."""


def paged(page: Page) -> type[TyperCommand]:
    """The class of a command with that page, for `cls=`."""
    return type("Paged", (PagedCommand,), {"page": page})


def paged_group(page: Page) -> type[TyperGroup]:
    """The class of a command with subcommands and that page, for `cls=`."""
    return type("PagedCommands", (PagedGroup,), {"page": page})


class PagedCommand(TyperCommand):
    """See `paged`."""

    page = Page(())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the dotted options out, refuse unknown ones, and leave the rest to the parser."""
        if "--help-all" in args and self.page.advanced:
            ctx.meta[_SHOWS_ALL] = True
            args = ["--help"]
        rest, ctx.meta[DOTTED] = _take_dotted(args, self.page, _taking(self.params), ctx.command_path)
        return list(super().parse_args(ctx, rest))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, summary, sections, examples."""
        _write_head(self, ctx, formatter)
        _write_sections(self, ctx, formatter)
        _write_examples(self.page.examples, formatter)


class PagedGroup(TyperGroup):
    """See `paged_group`."""

    page = Page(())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse unknown options before the subcommand."""
        _take_dotted(args, self.page, _taking(self.params), ctx.command_path, stop_at_argument=True)
        return list(super().parse_args(ctx, args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, summary, options, subcommands, examples."""
        _write_head(self, ctx, formatter)
        _write_sections(self, ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, text in self.summaries(ctx).items()], col_max=28)
        _write_examples(self.page.examples, formatter)

    def summaries(self, ctx: Any) -> dict[str, str]:
        """Subcommand -> its first sentence."""
        return {name: (command.help or "").split(". ")[0] for name, command in self.commands.items()}


def _write_head(command: Any, ctx: Any, formatter: Any) -> None:
    command.format_usage(ctx, formatter)
    formatter.write_paragraph()
    formatter.indent()
    formatter.write_text(command.help or "")
    formatter.dedent()


def _write_sections(command: Any, ctx: Any, formatter: Any) -> None:
    page, params = command.page, command.params
    hidden = () if ctx.meta.get(_SHOWS_ALL) else page.advanced
    for heading, names in _sections(page, [param.name for param in params]).items():
        rows = [_row(param) for param in params if param.name in names and param.name not in hidden]
        rows += (page.rows if hidden else page.all_rows).get(heading, ())
        if heading == "Options":
            rows.append(("-h, --help", "This page"))
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=28)
    if hidden:
        with formatter.section(f"Advanced ({ctx.command_path} --help-all explains them)"):
            formatter.write_text(" ".join(param.opts[0] for param in params if param.name in hidden))


def _write_examples(examples: Iterable[str], formatter: Any) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _sections(page: Page, names: Iterable[str]) -> dict[str, Sequence[str]]:
    placed = {name for section in page.sections.values() for name in section}
    others = [name for name in names if name not in placed]
    return {**page.sections, "Options": others}


def _row(param: Any) -> tuple[str, str]:
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper(), param.help or ""
    takes = "" if param.is_flag else f" {param.metavar}"
    return f"{param.opts[0]}{takes}", param.help or ""


def _taking(params: Iterable[Any]) -> dict[str, bool]:
    """Option -> whether a value follows it."""
    found = {"--help": False, "-h": False}
    for param in params:
        if param.param_type_name == "option":
            found |= dict.fromkeys((*param.opts, *param.secondary_opts), not param.is_flag)
    return found


def _take_dotted(
    args: Sequence[str], page: Page, taking: Mapping[str, bool], command: str, *, stop_at_argument: bool = False
) -> tuple[list[str], list[tuple[str, str, str]]]:
    """(the other arguments, the dotted options). Raises BadInput with every unknown option."""
    rest: list[str] = []
    dotted: list[tuple[str, str, str]] = []
    problems: list[str] = []
    waiting = list(args)
    while waiting:
        token = waiting.pop(0)
        name, has_value, value = token.partition("=")
        if token == "--" or (stop_at_argument and not token.startswith("-")):
            rest += [token, *waiting]
            break
        if not token.startswith("-") or token == "-" or taking.get(name) is False:
            rest.append(token)
        elif name in taking:
            rest += [token] if has_value else [token, *waiting[:1]]
            waiting = waiting if has_value else waiting[1:]
        else:
            option, _, key = name.partition(".")
            target = (page.groups[option], key) if key and option in page.groups else page.short.get(name)
            if target is None:
                problems.append(_unknown(name, page, taking, command))
            elif not has_value and not waiting:
                problems.append(f"{name} needs a value")
            else:
                text = value if has_value else waiting.pop(0)
                dotted.append((target[0], target[1].replace("-", "_"), text))
    if problems:
        raise BadInput(problems)
    return rest, dotted


def _unknown(name: str, page: Page, taking: Iterable[str], command: str) -> str:
    option, dot, key = name.partition(".")
    if name in page.groups:
        return f"{name} alone says nothing; set what belongs to it, {name}.KEY VALUE. See {command} --help-all"
    if dot and option in taking:
        return (
            f"{option} has no settings of its own, so {name} means nothing. Options that have: {', '.join(page.groups)}"
        )
    if dot:
        near = nearest(name, [f"{group}.{key}" for group in page.groups])
    else:
        near = nearest(name, [known for known in (*taking, *page.short) if known.startswith("--")])
    return f"no option {name}.{near} See {command} --help"
