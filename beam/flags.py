"""Command lines of Beam jobs: the flags of a job beside those of Beam and of the runner, with no unknown one."""

import argparse
import difflib
import functools

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner

_HELP = ("-h", "--help", "--helpfull")


def parse(argv: list[str], own: type[PipelineOptions], program: str, usage: str, description: str) -> PipelineOptions:
    """Parses a command line; `--help` shows the flags of the job, `--helpfull` those of Beam and its runners too.

    Exits with status 2 and a message that names the flag and similar ones when a flag is unknown, as argparse
    does for a value of the wrong type.

    Args:
      argv: the arguments.
      own: the options of the job.
      program, usage, description: for `--help` and messages.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"%(prog)s {usage}\n       [flags of Beam and its runners]",
        allow_abbrev=False,
        add_help=False,
        conflict_handler="resolve",
        description=description,
        formatter_class=functools.partial(argparse.HelpFormatter, width=120, max_help_position=36),
        epilog=f"{', '.join(_HELP[:2])}: show this. {_HELP[2]}: show the flags of Beam and its runners too.",
    )
    ours, others = parser.add_argument_group("the job"), parser.add_argument_group("Beam and its runners")
    asked = {argument for argument in argv if argument in _HELP}
    argv = [argument for argument in argv if argument not in asked]
    option_classes = [own]
    if not asked or _HELP[2] in asked:
        runner = PipelineOptions(argv).view_as(StandardOptions).runner
        if runner:
            try:
                create_runner(runner)  # importing a runner's module defines the runner's own flags
            except (ValueError, ImportError) as error:
                parser.exit(2, f"{program}: --runner={runner}: {str(error).strip()}\n")
        option_classes = list({str(c): c for c in PipelineOptions.__subclasses__()}.values())
    for option_class in option_classes:
        option_class._add_argparse_args(ours if option_class is own else others)
    if asked:
        parser.print_help()
        parser.exit()
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        parser.exit(2, "".join(_unknown(program, flag, flags) for flag in unknown))
    return PipelineOptions(argv)


def _unknown(program: str, argument: str, flags: list[str]) -> str:
    similar = difflib.get_close_matches(argument.split("=")[0], flags, n=3)
    hint = f"did you mean {' or '.join(similar)}?" if similar else "--help lists the flags."
    return f"{program}: unknown argument {argument!r}: {hint}\n"
