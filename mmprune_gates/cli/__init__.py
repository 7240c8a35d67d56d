"""Shared parts of the command lines in ``tools/``. Exit codes: 0 done, 1 bad input or an error, 2 wrong usage.

Importing this needs mmengine. :mod:`mmprune_gates.cli.jobs`, which also needs rich (the extra ``report``), is imported
by its own name.
"""

from mmprune_gates.cli.arguments import Options, config_parser, load_config, plain_parser, runner_config, runner_parser
from mmprune_gates.cli.errors import reports_errors
from mmprune_gates.cli.files import check_writable, read_json, write_bytes, write_json, write_text

__all__ = [
    'Options',
    'check_writable',
    'config_parser',
    'load_config',
    'plain_parser',
    'read_json',
    'reports_errors',
    'runner_config',
    'runner_parser',
    'write_bytes',
    'write_json',
    'write_text',
]
