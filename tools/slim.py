"""Fold and slim a gated checkpoint: writes OUT_DIR/slim.py, slim.pth and slim.json.

Exits with 1, and writes nothing, when the slim model's output differs from the gated one's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmprune_gates import cli
from mmprune_gates.engine.export import export_slim
from mmprune_gates.timing.verdict import verdict

STOCK_WORK_DIR = Path('work_dirs', 'slim')  # of runs of a config that is called slim.py


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='a checkpoint of the gated run')
    parser.add_argument('out_dir', help='folder for the slim model')
    args = parser.parse_args(argv)
    config = cli.load_config(args.config, args.cfg_options)
    report = export_slim(config, args.checkpoint, args.out_dir)
    rows = {'MACs': 'macs', 'parameters': 'params', 'channels': 'channels', 'blocks': 'blocks'}
    print(f'{"":12}{"before":>14}{"after":>14}{"kept":>8}')
    for name, row in ((name, report[key]) for name, key in rows.items()):
        if row['before']:  # not every run has gates on blocks, or on channels
            print(f'{name:12}{row["before"]:14,}{row["after"]:14,}{row["after"] / row["before"]:8.1%}')
    try:
        latency = verdict(config, args.out_dir, report)
    except ValueError as error:  # the model is slim all the same
        latency = {'not_measured': str(error)}
    if latency:
        cli.write_json(Path(args.out_dir) / 'slim.json', {**report, 'latency': latency})
        print('\n'.join(told(latency)))
    print(f'parity error {report["parity_error"]:.1e}; written to {args.out_dir}')
    if Path(args.out_dir).resolve() == STOCK_WORK_DIR.resolve():
        print(f'give stock tools a --work-dir: by default they write a config of their own to {STOCK_WORK_DIR}/slim.py')
    return 0


def told(latency: dict) -> list[str]:
    """Predicted and measured latency in words, and by how much the target was missed."""
    if 'not_measured' in latency:
        return [f'the latency was not measured: {latency["not_measured"]}']
    lines = []
    for name in ('predicted', 'measured'):
        row = latency[f'{name}_ms']
        lines.append(f'{name:12}{row["before"]:11.2f} ms{row["after"]:11.2f} ms{row["kept"]:8.1%}')
    missed = latency['measured_ms']['kept'] / latency['target'] - 1
    lines.append(
        f'target {latency["target"]:.1%} of the latency ({latency["backend"]}): measured is off by {missed:+.1%}'
    )
    return lines


if __name__ == '__main__':
    sys.exit(main())
