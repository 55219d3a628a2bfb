"""The command lines of the benchmark."""

from __future__ import annotations

import argparse


def described_parser(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a module's docstring: its first line above the options, the rest below."""
    description, _, details = (documentation or "").partition("\n")
    return argparse.ArgumentParser(
        program, description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
