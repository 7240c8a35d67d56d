"""ONNX export of both model zoos: one model of every family loses a random half of its channels and is exported.

    python tools/dev/zoo_onnx.py --out-dir work_dirs/zoo_onnx  # resumes where it ended; ends with the counts

The models are those of ``zoo.py``, with random weights in float32, at the smallest input they take; the ONNX model is
compared with the slim one by ``mmprune_gates.engine.onnx_graph``, as ``tools/export_onnx.py`` does.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from model_checks import random_kept
from zoo import collect, families, result_path, run
from zoo_measure import Probe

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

STAGES = ('build', 'run', 'trace')  # of the probe


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out-dir', type=Path, help='folder of the results')
    parser.add_argument('--only', default='*', metavar='PATTERN', help='SCOPE/FAMILY, with wildcards')
    parser.add_argument('--timeout', type=float, default=300, metavar='SECONDS', help='limit for one model')
    parser.add_argument('--measure', nargs=3, metavar=('SCOPE', 'CONFIG', 'FILE'), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        scope, config, file = args.measure
        measure(scope, config, Path(file))
    elif args.out_dir is None:
        parser.error('--out-dir is required')
    else:
        sweep(args.out_dir, args.only, args.timeout)
        print(told(collect(args.out_dir)))
    return 0


def sweep(out_dir: Path, only: str, timeout: float) -> None:
    """Measure every model that matches and has no result yet."""
    for model in families():
        name = f'{model[0]}/{model[1]}'
        if fnmatch(name, only) and not result_path(out_dir, model).is_file():
            result = run(out_dir, model, timeout, __file__)
            print(f'{name}: {verdict(result)}', flush=True)


def measure(scope: str, path: str, out: Path) -> None:
    """Slim a model at random, export it and compare, writing the results so far after each stage."""
    probe = Probe(scope, path)
    stages = {name: getattr(probe, name) for name in STAGES}
    stages['export'] = lambda: export(probe)
    for name, stage in stages.items():
        probe.record['running'] = name
        cli.write_json(out, probe.record)
        begin = time.perf_counter()
        try:
            stage()
        except Exception as error:  # a sweep records whatever goes wrong
            probe.record['failures'][name] = f'{type(error).__name__}: {error}'[:400]
            break
        finally:
            probe.record['seconds'][name] = round(time.perf_counter() - begin, 2)
    del probe.record['running']
    cli.write_json(out, probe.record)


def export(probe: Probe) -> None:
    """Export the slim model, and record how far onnxruntime is from it.

    Raises:
        ValueError: The model cannot be exported, or onnxruntime does not agree with it.
    """
    kept = random_kept(probe.graph, share=0.5)
    slimmed = copy.deepcopy(probe.model)
    slim_model(slimmed, probe.graph, kept)
    probe.record['macs_kept'] = probe.graph.macs(kept) / max(1, probe.graph.macs())
    module = Deployed(slimmed)
    shape, batch = probe.record['shape'], None
    proto, reason = onnx_of_batches(module, shape, 1)
    if reason:
        probe.record['any_batch'] = reason  # why not
        batch = 1
    agreement = compare(session_of(proto), module, shapes_to_compare(module, shape, False, batch))
    ops = sorted({node.op_type for node in proto.graph.node})
    probe.record.update(
        error=agreement.error, equal=agreement.equal, opset=opset_of(proto), norms_left=norms_left(proto), ops=ops
    )
    if not agreement.holds:
        drawing = ', '.join(random_ops(proto))
        why = f'it draws random numbers ({drawing})' if drawing else 'it does not agree'
        raise ValueError(f'{why}: {agreement}')


def verdict(result: dict) -> str:
    """The result of one model in words."""
    if result['failures']:
        return '; '.join(f'{stage}: {text}' for stage, text in result['failures'].items())
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
