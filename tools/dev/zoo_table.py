"""The page about the sweep over both model zoos, from its results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping

EXACT, COVERED = 1e-5, 0.9
GATES_EXACT = {'float64': 1e-12, 'float32': 1e-6}
KINDS = ('convolutional', 'transformer', 'mlp')
ERRORS = ('slim_error', 'rebuilt_error', 'block_error', 'training_error')
HEADER = ('family', 'config', 'kind', 'input', 'MACs', 'prunable', 'free groups', 'trace (export) s') + (
    'masked vs slim',
    'rebuilt',
    'blocks gone',
    'training mode',
    'trains',
    'frozen',
)
INTRO = """\
# Coverage of the model zoos

Written by `python tools/dev/zoo.py --out-dir DIR --write docs/zoo.md`; the sweep is
`python tools/dev/zoo.py --out-dir DIR`.
All measurements, with the reason for each frozen channel, are in [zoo.json](zoo.json).

One model for each family, that is, folder of configs, of the installed packages: the smallest by parameters
(`tools/dev/zoo_models.py`), built from its stock config with random weights. In each, 30 to 50 % of the channels of
every group that is not frozen go, at random. Errors are the largest difference of any head's output relative to its
largest value, in float64 (float32 where a model's code demands it).

- *Masked vs slim*: in evaluation mode. *Rebuilt*: the model built again from its saved config and weights. *Training
  mode*: with batch statistics. *Slim exactly* in the totals: all heads, both modes (as far as the stock model has
  them), to 1e-5.
- *Blocks gone*: in evaluation mode, with a third of the residual blocks closed by their own gates and another third
  emptied, where that can be (no entry: no block that can go).
- *Trains*: one loss and its gradients, in float32.
- *Prunable*: MACs that go if every free channel goes. Segmentors run at 64×64 where they can, so that shares at full
  size differ a little where there is attention.
- *Frozen*: why, with the share of the MACs of layers that cannot lose any channel. The rest of what is not prunable
  belongs to layers that are frozen in part and to products of activations.
- *Trace*: seconds on one CPU core (of a busy machine) for both passes; in brackets `torch.export` itself, where it was
  measured.
- *Kind*: `transformer` if a module attends over tokens, `mlp` if it neither does nor has an overlapping convolution
  (`tools/dev/zoo_measure.py`).
"""


def page(results: Mapping[str, dict], excluded: Mapping[str, Mapping[str, str]], missing: Iterable[str] = ()) -> str:
    """The whole page as Markdown.

    Args:
        results: SCOPE/FAMILY -> what was measured.
        excluded: Scope -> folder -> why it has no model.
        missing: SCOPE/FAMILY without a result.
    """
    parts = [INTRO, '## Totals\n', *totals(results), '']
    if unmeasured := ', '.join(missing):
        parts += [f'Not measured yet: {unmeasured}.', '']
    parts += ['## Exceptions\n', *exceptions(results), '']
    for scope in dict.fromkeys(name.partition('/')[0] for name in results):
        own = {name: result for name, result in results.items() if name.partition('/')[0] == scope}
        parts += [f'## {scope}\n', *table(HEADER, [row(name, result) for name, result in own.items()]), '']
    parts.append('## Excluded\n')
    for scope, reasons in excluded.items():
        parts += [f'- {scope}/{name}: {escape(reason)}' for name, reason in reasons.items()]
    return '\n'.join(parts) + '\n'


def totals(results: Mapping[str, dict]) -> list[str]:
    """Lines of the table of totals, a row for each kind."""
    rows = []
    for kind in KINDS:
        own = [r for r in results.values() if r.get('kind') == kind and runs(r)]
        if not own:
            continue
        seconds = [r['trace_s'] for r in own if traces(r)]
        rows.append(
            [
                kind,
                str(len(own)),
                *(str(sum(map(holds, own))) for holds in (traces, gates_exact, slims, rebuilds, well_covered, trains)),
                f'{statistics.median(seconds):.1f} / {max(seconds):.1f}' if seconds else '–',
            ]
        )
    header = ['kind', 'families', 'trace', 'gates change nothing', 'slim exactly', 'rebuild exactly']
    lines = table([*header, '≥ 90 % prunable', 'slim model trains', 'trace s, median / worst'], rows)
    if not_here := [name for name, result in results.items() if not runs(result)]:
        lines += ['', f'Not counted, as the stock model does not run here: {", ".join(not_here)}.']
    return lines


def runs(result: Mapping) -> bool:
    """Whether the stock model builds and runs in the environment of the sweep."""
    failures = result.get('failures', {})
    return 'build' not in failures and not {'run', 'stock'} <= failures.keys()


def traces(result: Mapping) -> bool:
    """Whether there is a channel graph."""
    return 'groups' in result


def gates_exact(result: Mapping) -> bool:
    """Whether fresh gates leave the output as it is."""
    return result.get('gate_error', 1) <= GATES_EXACT[result.get('dtype', 'float64')]


def slims(result: Mapping) -> bool:
    """Whether the slim model equals the masked one, in both modes if the stock model has both."""
    failures = result.get('failures', {})
    no_training_mode = 'stock' in failures and failures.get('training mode') == failures['stock']
    modes = ('slim_error',) if no_training_mode else ('slim_error', 'training_error')
    return all(result.get(name, 1) <= EXACT for name in modes) and result.get('block_error', 0) <= EXACT


def rebuilds(result: Mapping) -> bool:
    """Whether the rebuilt slim model equals the masked one."""
    return result.get('rebuilt_error', 1) <= EXACT


def well_covered(result: Mapping) -> bool:
    """Whether nearly all MACs can go."""
    return result.get('prunable_share', 0) >= COVERED


def trains(result: Mapping) -> bool:
    """Whether the slim model trains."""
    return 'loss' in result


def problems(result: Mapping) -> list[str]:
    """The problems of a family, and their causes."""
    failures = dict(result.get('failures', {}))
    if not runs(result):
        return [f'stock model does not run here: {failures.get("build") or failures["run"]}']
    found = []
    if 'stock' in failures:
        refused = failures.pop('stock')
        found.append(f'stock model does not train: {refused}')
        failures = {stage: text for stage, text in failures.items() if text != refused}
    found += [f'{stage}: {text}' for stage, text in failures.items()] + list(result.get('notes', []))
    if traces(result) and not well_covered(result):
        why = '; '.join(frozen(result)[:4])
        found.append(f'{result["prunable_share"]:.1%} prunable; frozen: {why or "parts of layers, and products"}')
    if 'gate_error' in result and not gates_exact(result):
        found.append(f'gates change the output by {result["gate_error"]:.1e}')
    found += [f'{name.replace("_", " ")} {result[name]:.1e}' for name in ERRORS if result.get(name, 0) > EXACT]
    return found


def frozen(result: Mapping) -> list[str]:
    """Reasons for frozen channels, without module names, each with the share of MACs of the layers concerned."""
    shares: dict[str, float] = {}
    for entry in result.get('frozen', []):
        reason = re.sub(r' in [\w.]+\)$', ')', entry['reason']).replace('aten.', '')
        shares[reason] = shares.get(reason, 0) + entry['macs_share']
    return [f'{r} {s:.1%}' for r, s in sorted(shares.items(), key=lambda item: -item[1]) if s >= 0.005]


def exceptions(results: Mapping[str, dict]) -> list[str]:
    """A list item for each family that has a problem, convolutional ones first."""
    order = sorted(results.items(), key=lambda item: KINDS.index(item[1].get('kind', KINDS[0])))
    lines = [
        f'- **{name}** ({result.get("kind", "?")}): {escape(". ".join(problems(result)))}'
        for name, result in order
        if problems(result)
    ]
    return lines or ['None.']


def row(name: str, result: Mapping) -> list[str]:
    """Cells of a family's line."""
    shape = '×'.join(map(str, result.get('shape', [])[1:]))
    return [
        name.partition('/')[2],
        result['config'].rpartition('/')[2].removesuffix('.py'),
        result.get('kind', '–'),
        shape or '–',
        f'{result["macs"] / 1e9:.2f} G' if traces(result) else '–',
        f'{result["prunable_share"]:.1%}' if traces(result) else '–',
        f'{result["free_groups"]} of {result["groups"]}' if traces(result) else '–',
        seconds(result) if traces(result) else '–',
        *(scientific(result.get(key)) for key in ERRORS),
        'yes' if trains(result) else 'stock does not' if 'stock' in result.get('failures', {}) else 'no',
        escape('; '.join(frozen(result)[:3])) or '–',
    ]


def seconds(result: Mapping) -> str:
    """Time of the trace, and in brackets that of the export where it was measured."""
    export = result['export_s']
    return f'{result["trace_s"]:.1f}' + ('' if export is None else f' ({export:.1f})')


def scientific(value: float | None) -> str:
    """An error as a cell."""
    return '–' if value is None else '0' if value == 0 else f'{value:.0e}'


def escape(text: str) -> str:
    """Text on one line, escaped for a cell of a table or an item of a list."""
    return ' '.join(text.split()).replace('|', r'\|').replace('<', '&lt;')


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    header = list(header)
    return [f'| {" | ".join(cells)} |' for cells in (header, ['---'] * len(header), *rows)]
