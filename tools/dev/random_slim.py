"""Configs of a stock model and of the same model after random pruning, to time them side by side.

    python tools/dev/random_slim.py mmpretrain poolformer/poolformer-s12_32xb128_in1k.py OUT_DIR --shape 3 224 224
    python tools/analysis_tools/latency.py OUT_DIR/dense.py OUT_DIR/slim.py --shape 3 224 224 --backend both

The weights of both are random: time does not depend on them. With ``--of torch`` or ``--of onnxruntime`` the share is
one of the latency by this machine's table, which ``tools/analysis_tools/latency_table.py OUT_DIR/dense.py`` measures.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from zoo_select import load_model_config

from mmprune_gates.budget.costs import MACs
from mmprune_gates.budget.latency import Latency
from mmprune_gates.budget.latency_table import BACKENDS
from mmprune_gates.budget.selection import Candidates, Limits
from mmprune_gates.channels.index import channels_in
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.model_config import slim_config
from mmprune_gates.slimming import slim_model


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('scope', help='mmseg or mmpretrain')
    parser.add_argument('config', help="relative to the package's configs")
    parser.add_argument('out_dir', type=Path)
    parser.add_argument('--shape', type=int, nargs=3, metavar=('C', 'H', 'W'), required=True)
    parser.add_argument('--share', type=float, default=0.3, help='share of the cost that is kept')
    parser.add_argument('--of', choices=('macs', *BACKENDS), default='macs', help='the cost: MACs, or a latency')
    parser.add_argument('--seed', type=int, default=0, help='of the scores')
    parser.add_argument('--divisor', type=int, default=8, help='groups shrink to multiples of it')
    parser.add_argument('--whole-streams', action='store_true', help='keep what norms across channels read')
    args = parser.parse_args(argv)
    init_default_scope(args.scope)
    dense = load_model_config(args.scope, args.config)
    model = MODELS.build(copy.deepcopy(dense)).eval()
    graph = trace(model, args.shape)
    generator = torch.Generator().manual_seed(args.seed)
    score = torch.rand(graph.num_channels, generator=generator)
    for block in graph.blocks:
        if block.gate is not None:
            score[block.gate] = 1  # blocks stay
    if args.whole_streams:
        for module in graph.full_width.values():
            score[channels_in(module.index)] = 1
    cost = MACs() if args.of == 'macs' else Latency(backend=args.of)
    candidates = Candidates.of(graph, Limits(divisor=args.divisor), cost.bind(graph))
    kept = candidates.choose(score, args.share)
    slim = slim_config(dense, **slim_model(model, graph, kept))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for name, config in (('dense', dense), ('slim', slim)):
        whole = dict(default_scope=args.scope, custom_imports=dict(imports=['mmprune_gates']), model=config)
        Config(whole).dump(args.out_dir / f'{name}.py')
    print(f'{100 * graph.macs(kept) / graph.macs():.1f} % of {graph.macs() / 1e6:.0f} MMACs are kept')
    if args.of != 'macs':
        print(f'{100 * candidates.share(kept):.1f} % of {candidates.total:.1f} ms are predicted')
    return 0


if __name__ == '__main__':
    sys.exit(main())
