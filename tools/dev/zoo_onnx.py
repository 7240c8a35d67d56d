"""ONNX export of both model zoos: one model of every family loses a random half of its channels and is exported.

    python tools/dev/zoo_onnx.py --out-dir work_dirs/zoo_onnx  # resumes where it ended; ends with the counts

The models are those of ``zoo.py``, with random weights in float32, at the smallest input they take; the ONNX model is
compared with the slim one by ``mmprune_gates.engine.onnx_graph``, as ``tools/export_onnx.py`` does.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from model_checks import random_kept
from zoo import collect, failures_of, run, sweep
from zoo_measure import Probe, measure

from mmprune_gates.engine.onnx_export import shapes_to_compare
from mmprune_gates.engine.onnx_graph import (
    Deployed,
    compare,
    norms_left,
    onnx_of_batches,
    opset_of,
    random_ops,
    session_of,
)
from mmprune_gates.slimming import slim_model

STAGES = {'build': (), 'run': ('build',), 'trace': ('run',), 'export': ('trace',)}  # as in zoo_measure.py


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('--out-dir', type=Path, help='folder of the results')
    parser.add_argument('--only', default='*', metavar='PATTERN', help='SCOPE/FAMILY, with wildcards')
    parser.add_argument('--timeout', type=float, default=300, metavar='SECONDS', help='limit for one model')
    parser.add_argument('--measure', nargs=3, metavar=('SCOPE', 'CONFIG', 'FILE'), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        scope, config, file = args.measure
        measure(Exported(scope, config), Path(file), STAGES)
    elif args.out_dir is None:
        parser.error('--out-dir is required')
    else:
        measured = partial(run, args.out_dir, timeout=args.timeout, tool=__file__)
        sweep(args.out_dir, args.only, measured, verdict)
        print(told(collect(args.out_dir)))
    return 0


class Exported(Probe):
    """A stock model on its way to ONNX."""

    def export(self) -> None:
        """Slim the model at random, export it, and record how far onnxruntime is from it.

        Raises:
            ValueError: It cannot be exported, or onnxruntime does not agree with it.
        """
        kept = random_kept(self.graph, share=0.5)
        slimmed = copy.deepcopy(self.model)
        slim_model(slimmed, self.graph, kept)
        self.record['macs_kept'] = self.graph.macs(kept) / max(1, self.graph.macs())
        module = Deployed(slimmed)
        shape, batch = self.record['shape'], None
        proto, reason = onnx_of_batches(module, shape, 1)
        if reason:
            self.record['any_batch'] = reason  # why not
            batch = 1
        agreement = compare(session_of(proto), module, shapes_to_compare(module, shape, False, batch))
        ops = sorted({node.op_type for node in proto.graph.node})
        self.record.update(
            error=agreement.error, equal=agreement.equal, opset=opset_of(proto), norms_left=norms_left(proto), ops=ops
        )
        if not agreement.holds:
            drawing = ', '.join(random_ops(proto))
            why = f'it draws random numbers ({drawing})' if drawing else 'it does not agree'
            raise ValueError(f'{why}: {agreement}')


def verdict(result: dict) -> str:
    """The result of one model in words."""
    if result['failures']:
        return failures_of(result)
    fixed = ', a batch of one' if 'any_batch' in result else ''
    return f'error {result["error"]:.1e}, {result["equal"]:.2%} equal{fixed}'


def told(results: dict[str, dict]) -> str:
    """How many of the models that run here are exported and agree, and the problems of the others."""
    ran = {name: result for name, result in results.items() if not {'build', 'run'} & result['failures'].keys()}
    good = [name for name, result in ran.items() if not result['failures']]
    fixed = [name for name in good if 'any_batch' in ran[name]]
    lines = [f'{len(good)} of {len(ran)} are exported and agree']
    lines += [f'{name}: only with a fixed batch: {ran[name]["any_batch"]}' for name in fixed]
    lines += [f'{name}: {verdict(result)}' for name, result in ran.items() if name not in good]
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
