"""Commands whose options are the settings of a verb, derived from its dataclass.

A setting of the verb is one option, `--learning-rate 1e-5`; one of a method is a dotted option, `--method.beta 0.1`.
`--config` gives settings from a file, and the command line wins; naming a method there starts from its defaults.

Source: this project.  Checked against: --print-config read back by --config; each way of giving a setting.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from letheon.cli.ending import Outcome, finish
from letheon.cli.page import CONTEXT, DOTTED, Page, paged
from letheon.errors import BadInput
from letheon.methods import Setting, card, names
from letheon.recipes import verbs
from letheon.settings import missing

COMMON: dict[str, tuple[str, bool, str]] = {
    "config": ("FILE", False, "Settings from a YAML file; the command line wins"),
    "print_config": ("", True, "Print all settings as YAML for --config, run nothing"),
    "dry_run": ("", True, "Check everything, estimate memory and time, run nothing"),
    "json": ("", True, "The result as JSON on standard output"),
    "quiet": ("", True, "No progress"),
    "allow_code": ("", True, "Methods in the --config file may be files of Python, which are run"),
}
"""Option of every verb -> (what it takes, whether it is a switch, help)."""
_METAVARS = {"int": "N", "float": "NUMBER", "Path": "PATH", "bool": "", "str": "TEXT"}

Finish = Callable[[Any, Mapping[str, Any]], Outcome]
"""(result of the verb, its settings as given) -> what to say."""


def verb_app(
    verb: str,
    *,
    summary: str,
    main: Sequence[str],
    examples: tuple[str, ...],
    done: Finish,
    short_for: str = "",
) -> typer.Typer:
    """The command of a verb.

    Args:
        verb: one of `verbs.VERBS`.
        summary: the first lines of --help.
        main: settings, besides paths and methods, that --help explains; the others it names.
        examples: at least two commands.
        done: what to say at the end.
        short_for: a setting whose method's settings may be given without their prefix (--bits for --method.bits).
    """
    settings, kinds = verbs.settings(verb), verbs.kinds(verb)
    page = _page(settings, kinds, main, examples, short_for)

    def command(ctx: Any, **given: Any) -> None:
        _call(verb, {name: value for name, value in given.items() if value is not None}, ctx.meta[DOTTED], done)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [_parameter(setting, kinds) for setting in settings if not setting.inner]
    parameters += [_common(name, *what) for name, what in COMMON.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(verb, cls=paged(page), help=summary, context_settings=CONTEXT)(command)
    return app


# --- options


def flag(name: str) -> str:
    """The option of a setting: --forget for forget_data, --learning-rate for learning_rate."""
    return "--" + name.removesuffix("_data").replace("_", "-")


def _page(
    settings: Sequence[Setting],
    kinds: Mapping[str, str],
    main: Sequence[str],
    examples: tuple[str, ...],
    short_for: str,
) -> Page:
    own = [setting.name for setting in settings]
    paths = [setting.name for setting in settings if "Path" in setting.annotation]
    methods = [name for name in own if name in kinds or name == "preset"]
    inner = [setting for setting in settings if setting.inner]
    explained = {*paths, *methods, *main, *(setting.name for setting in inner)}
    advanced = [name for name in own if name not in explained]
    short = {key.name: key for key in _keys_of_all(kinds[short_for])} if short_for else {}
    short = {name: key for name, key in short.items() if name not in own}
    chosen = [verbs.default(setting) for setting in settings if setting.name == short_for]
    shown = [key for name in chosen for key in card(kinds[short_for], name).settings if key.name in short]
    extra = {f"Settings of {name} (others: letheon methods NAME)": _rows("--", shown) for name in chosen}
    return Page(
        examples=examples,
        sections={
            "Model and data": paths,
            "Methods (letheon methods NAME shows the settings of each; --name.setting VALUE sets one)": methods,
            **dict.fromkeys(extra, ()),
            "Settings": [name for name in own if name not in (*paths, *methods)],
        },
        advanced=[*advanced, "allow_code"] if advanced else [],
        groups={flag(name): name for name in (*kinds, *(setting.name for setting in inner))},
        short={flag(name): (short_for, name) for name in short},
        rows={**extra, "Settings": [_group_row(setting) for setting in inner]},
        all_rows={**extra, "Settings": [row for one in inner for row in _rows(f"{flag(one.name)}.", one.inner)]},
    )


def _keys_of_all(kind: str) -> list[Setting]:
    return [key for name in names(kind) for key in card(kind, name).settings]


def _rows(prefix: str, keys: Sequence[Setting]) -> list[tuple[str, str]]:
    return [(f"{prefix}{key.name.replace('_', '-')} {_metavar(key, {})}", _help(key)) for key in keys]


def _group_row(setting: Setting) -> tuple[str, str]:
    keys = ", ".join(key.name.replace("_", "-") for key in setting.inner)
    return f"{flag(setting.name)}.KEY VALUE", f"{verbs.description(setting)}; KEY: {keys}"


def _parameter(setting: Setting, kinds: Mapping[str, str]) -> inspect.Parameter:
    text = _help(setting)
    declared: Any
    annotation: Any
    if setting.name == "model":
        declared, annotation = typer.Argument(None, metavar="MODEL", help=text, show_default=False), str | None
    elif setting.annotation == "bool":
        name = flag(setting.name)
        declared, annotation = typer.Option(None, f"{name}/--no-{name[2:]}", help=text), bool | None
    else:
        annotation = list[str] | None if setting.annotation.startswith("dict") else str | None
        takes = _metavar(setting, kinds)
        declared = typer.Option(None, flag(setting.name), metavar=takes, help=text, show_default=False)
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=annotation)


def _common(name: str, metavar: str, is_switch: bool, text: str) -> inspect.Parameter:
    option = "--" + name.replace("_", "-")
    annotation: Any = bool if is_switch else str | None
    declared = typer.Option(
        False if is_switch else None, option, metavar=metavar or None, help=text, show_default=False
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=annotation)


def _metavar(setting: Setting, kinds: Mapping[str, str]) -> str:
    if setting.name in kinds or setting.name == "preset":
        return "NAME"
    if options := _literals(setting.annotation):
        return "|".join(str(option) for option in options)
    if setting.annotation.startswith("dict"):
        return "OURS=YOURS"
    if setting.annotation.startswith(("tuple", "list")):
        return "A,B"
    return _METAVARS.get(setting.annotation.split(" ")[0], "VALUE")


def _help(setting: Setting) -> str:
    text = verbs.description(setting)
    if verbs.is_required(setting):
        return text
    value = verbs.default(setting)
    return text if value is None or isinstance(value, bool) else f"{text} [{_shown(value)}]"


def _shown(value: Any) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def _literals(annotation: str) -> list[Any]:
    """The values of a `Literal[...]` that is the whole annotation, else none."""
    if not annotation.startswith("Literal[") or not annotation.endswith("]"):
        return []
    node = ast.parse(annotation, mode="eval").body
    return list(ast.literal_eval(node.slice) if isinstance(node, ast.Subscript) else ())


# --- running


def _call(verb: str, given: dict[str, Any], dotted: Sequence[tuple[str, str, str]], done: Finish) -> None:
    common = {name: given.pop(name, None) for name in COMMON}
    values = layered(verb, given, dotted, config=common["config"], allow_code=bool(common["allow_code"]))
    absent = [setting for setting in verbs.settings(verb) if verbs.is_required(setting) and setting.name not in values]
    if absent:
        raise BadInput(_faults_of_incomplete(verb, values, absent, is_printing=bool(common["print_config"])))
    as_json = bool(common["json"])
    if common["print_config"]:
        _print_config(verb, values)
    elif common["dry_run"]:
        from letheon.recipes.dryrun import dry_run

        found = dry_run(verb, values)
        finish(Outcome(found, [str(found)]), command=verb, as_json=as_json)
    else:
        from letheon.runs.progress import Progress

        rest = dict(values)
        result = verbs.function(verb)(rest.pop("model"), progress=Progress(quiet=bool(common["quiet"])), **rest)
        finish(done(result, values), command=verb, as_json=as_json)


def _faults_of_incomplete(
    verb: str, values: Mapping[str, Any], absent: Sequence[Setting], *, is_printing: bool
) -> list[str]:
    """What was not given, in the words of the command line, and what is wrong with all that was."""
    wanted = [f"no {_wanted(verb, setting)}: {verbs.description(setting)}" for setting in absent]
    if not values:
        return wanted
    from letheon.recipes.dryrun import check

    try:
        _resolved(verb, values) if is_printing else check(verb, values)
    except BadInput as error:
        told = {missing(setting.name, where=verb) for setting in absent}
        return [*wanted, *(problem for problem in error.problems if problem not in told)]
    return wanted


def layered(
    verb: str,
    given: Mapping[str, Any],
    dotted: Sequence[tuple[str, str, str]] = (),
    *,
    config: str | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Settings of a verb from the layers: the file, a preset, options, dotted options; later ones win.

    What can be judged together with everything else is left to the verb: a preset, a method, a column.
    Raises BadInput when the file cannot be read, or brings code along.
    """
    values = _from_file(verb, config, allow_code=allow_code) if config else {}
    values = _with_preset(verb, values)
    own = {setting.name: setting for setting in verbs.settings(verb)}
    if "preset" in given:
        values |= _with_preset(verb, {"preset": given["preset"]})
    for name, value in given.items():
        if name == "columns":
            values[name] = {**(values.get(name) or {}), **_pairs(value)}
        elif name != "preset":
            values[name] = _value(own[name], value)
    for name, key, text in dotted:
        spec = values.get(name, {} if own[name].inner else verbs.default(own[name]))
        if isinstance(spec, str):
            spec = {"name": spec}
        values[name] = {**(spec or {}), key: _inner_value(verb, own[name], spec, key, text)}
    return values


def _with_preset(verb: str, values: dict[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(BadInput):  # an unknown one is reported with all other faults
        return verbs.with_preset(verb, values)
    return values


def _from_file(verb: str, path: str, *, allow_code: bool) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise BadInput(
            f"--config {path}: holds {type(values).__name__}, not settings. See letheon {verb} --print-config"
        )
    problems = [] if allow_code else verbs.own_code(verb, values)
    if problems:
        raise BadInput([f"--config {path}: {problem}" for problem in problems])
    return {str(name): value for name, value in values.items()}


def _value(setting: Setting, text: Any) -> Any:
    """The text of an option as what `settings.fill` takes."""
    if not isinstance(text, str):
        return text
    if setting.annotation.startswith(("tuple", "list")):
        return [part.strip() for part in text.split(",") if part.strip()]
    return next((option for option in _literals(setting.annotation) if str(option) == text), text)


def _inner_value(verb: str, setting: Setting, spec: Any, key: str, text: str) -> Any:
    """The same for a dotted option, where its group or its method knows the key."""
    known = setting.inner
    kind, name = verbs.kinds(verb).get(setting.name), spec.get("name") if isinstance(spec, Mapping) else None
    if kind and isinstance(name, str):
        with contextlib.suppress(BadInput):  # an unknown method is reported with all other faults
            known = card(kind, name).settings
    return next((_value(one, text) for one in known if one.name == key), text)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """OURS -> YOURS; a side that is not there is empty, which `column_problems` refuses."""
    return {ours: theirs for ours, _, theirs in (text.partition("=") for text in texts)}


def _wanted(verb: str, setting: Setting) -> str:
    return "MODEL" if setting.name == "model" else f"{flag(setting.name)} {_metavar(setting, verbs.kinds(verb))}"


def _print_config(verb: str, values: Mapping[str, Any]) -> None:
    import yaml

    resolved = _resolved(verb, values)
    print(f"# letheon {verb} --config THIS-FILE")
    print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), end="")


def _resolved(verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All settings as plain data. Raises BadInput with every fault that needs no file."""
    from letheon.data.records import column_problems

    columns = values.get("columns")
    problems = column_problems(columns) if isinstance(columns, Mapping) else []
    try:
        resolved = verbs.resolve(verb, values)
    except BadInput as error:
        raise BadInput([*error.problems, *problems]) from error
    if problems:
        raise BadInput(problems)
    return resolved
