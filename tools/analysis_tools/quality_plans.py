"""The plans of the quality benchmark: which runs answer which question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

FRESH = (0, 1, 2)  # seeds of the tables
PRUNING_RATES = (1.0, 3.0, 5.0)  # times the recipe's; of methods that continue a dense start
SCRATCH_RATES = (1.0, 0.3)  # times that of the dense start, the highest at which it trains
FOLLOWED_RATE = {'digits': 5.0}  # task -> the rate with which GDP is best, if that is not the recipe's


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task, method: Their names.
        share: MACs to keep / MACs of the whole model.
        seed: Seed of weights and data order.
        label: Short name of the options.
        options: Options of the method.
        rate_scale: Factor of the learning rate.
        after: Name of the run whose kept channels this one takes over; that one has to run before.
    """

    task: str
    method: str
    share: float
    seed: int
    label: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    rate_scale: float = 1.0
    after: str = ''

    @property
    def name(self) -> str:
        """The name of its file."""
        label = f'-{self.label}' if self.label else ''
        rate = '' if self.rate_scale == 1 else f'-x{self.rate_scale:g}'
        return f'{self.task}-{self.method}{label}{rate}-{self.share:g}-{self.seed}'


@dataclass(frozen=True)
class Arm:
    """A method as a table compares it.

    Attributes:
        method, label, options: Fields of its runs.
        title: Title of its row.
        family: Family of methods that it is drawn with.
        rates: Factors of the learning rate; the best one counts.
        shares: MACs kept, if they are not those of the plan.
        follows: Whether it takes over the channels kept by the run of GDP with the same seed and share.
    """

    method: str
    label: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = PRUNING_RATES
    shares: tuple[float, ...] = ()
    follows: bool = False
    family: str = ''

    def runs(self, task: str, shares: Sequence[float], seeds: Sequence[int]) -> list[Run]:
        """All its runs on a task."""
        cells = product(self.shares or shares, seeds, self.rates)
        return [self.run(task, share, seed, rate) for share, seed, rate in cells]

    def run(self, task: str, share: float, seed: int, rate: float) -> Run:
        """One of its runs."""
        followed = GDP.run(task, share, seed, FOLLOWED_RATE.get(task, 1.0)).name if self.follows else ''
        return Run(task, self.method, share, seed, self.label, self.options, rate, followed)


def torch_pruning(method: str, criterion: str, title: str, family: str) -> list[Arm]:
    """Arms of Torch-Pruning: one ratio for all layers, and one threshold for all."""
    kinds = (('local', 'one ratio', False), ('global', 'one threshold', True))
    return [
        Arm(f'torch_pruning{method}', f'{criterion}_{kind}', f'Torch-Pruning, {title}, {words}',
            {'criterion': criterion, 'global_pruning': one_threshold}, family=family)
        for kind, words, one_threshold in kinds
    ]  # fmt: skip


DENSE = Arm('dense', '', 'dense, trained on', shares=(1.0,))
GDP = Arm('gdp', 'waterline', 'GDP, waterline', {'update': 'waterline'}, family='ours')
GRADIENT = Arm('gdp', 'gradient', 'GDP, gradient', {'update': 'gradient'}, family='ours')
DECORATOR = Arm('decorator', '', 'Gate Decorator', family='ours')
OURS = (GDP, GRADIENT, DECORATOR)
ONE_CUT = 'cut once, then trained'
WHILE = 'pruned while training'
PEERS = (
    *torch_pruning('_iterative', 'taylor', 'Taylor in steps', WHILE),
    *torch_pruning('', 'taylor', 'Taylor', ONE_CUT),
    *torch_pruning('', 'magnitude', 'magnitude', ONE_CUT),
    Arm('dcfp', '', "DCFP's criterion", family=WHILE),
    *torch_pruning('_sparse', 'norm_scale', 'sparse BN scales', WHILE),
    *torch_pruning('', 'random', 'random', ONE_CUT),
)


def from_scratch(label: str, title: str, **options: Any) -> list[Arm]:
    """Arms of a network trained from scratch: for the same iterations, and for the same training MACs.

    The latter takes three to six times as many iterations, and has only the rate at which the former is better.
    """
    titles = f'{title} from scratch, same iterations', f'{title} from scratch, same training MACs'
    longer, family = {'same_macs': True}, 'from scratch'
    return [
        Arm('scratch', label, titles[0], {}, SCRATCH_RATES, family=family, **options),
        Arm('scratch', f'{label}_macs', titles[1], longer, SCRATCH_RATES[:1], family=family, **options),
    ]


SCRATCH = (
    *from_scratch('uniform', 'uniform'),
    *from_scratch('pruned', "GDP's widths", follows=True),
)
ARMS = (DENSE, *OURS, *PEERS, *SCRATCH)


@dataclass(frozen=True)
class Stage:
    """A part of the plan ``peers``; the parts are carried out in turn.

    Attributes:
        task: Its task.
        shares: MACs kept.
        arms: The arms to compare.
        rates: Positions of the learning rates among those of each arm; the recipe's is 0.
    """

    task: str
    shares: tuple[float, ...]
    arms: tuple[Arm, ...]
    rates: tuple[int, ...]

    def runs(self) -> list[Run]:
        """All its runs: for each cut and rate, arm by arm."""
        cells = []
        for share, place, arm in product(self.shares, self.rates, self.arms):
            if place < len(arm.rates):
                cells.append((share, replace(arm, rates=(arm.rates[place],))))
        return [run for share, arm in cells for run in arm.runs(self.task, (share,), FRESH)]


LONGER = tuple(arm for arm in SCRATCH if arm.options.get('same_macs'))
SPARSE = tuple(arm for arm in PEERS if arm.method == 'torch_pruning_sparse')
RANDOM = tuple(arm for arm in PEERS if arm.options.get('criterion') == 'random')
SAME_ITERATIONS = tuple(arm for arm in SCRATCH if arm not in LONGER)
UNIFORM = tuple(arm for arm in SAME_ITERATIONS if not arm.follows)
KEY = (DENSE, *OURS, *UNIFORM, *(arm for arm in PEERS if arm not in (*SPARSE, *RANDOM)))
WIDTHS = tuple(arm for arm in SAME_ITERATIONS if arm.follows)
LOCAL = tuple(arm for arm in PEERS if arm.options.get('global_pruning') is False)
REST = (*WIDTHS, *SPARSE, *RANDOM)
STAGES = (
    Stage('digits', (0.15,), KEY, (0, 1)),
    Stage('digits', (0.05,), KEY, (0,)),
    Stage('scenes', (0.15,), KEY, (0,)),
    Stage('digits', (0.05,), KEY, (1,)),
    Stage('digits', (0.15, 0.05), KEY, (2,)),
    Stage('digits', (0.15, 0.05), REST, (0, 1, 2)),
    Stage('scenes', (0.05,), KEY, (0,)),
    Stage('scenes', (0.15,), REST, (0,)),
    Stage('digits', (0.15, 0.05), LONGER, (0,)),
    Stage('scenes', (0.3,), KEY, (0,)),
    Stage('scenes', (0.05, 0.3), SPARSE, (0,)),
    Stage('scenes', (0.15,), LONGER, (0,)),
)


def peers() -> list[Run]:
    """Every method on fresh seeds, the most important runs first.

    Thinned out to about four core-hours: the digits have two cuts, 85 and 95 %, and up to three learning rates;
    the scenes have one learning rate, the recipe's, for all methods alike, and at 70 and 95 % no random pruning, no
    training of GDP's widths and no longer training from scratch. No seed is thinned out.
    """
    return runs_of(STAGES)


def runs_of(stages: Sequence[Stage]) -> list[Run]:
    """All runs of some stages, in turn; those of the dense model, which are in several, once."""
    runs = [run for stage in stages for run in stage.runs()]
    return list({run.name: run for run in runs}.values())


UNSEEN_ARMS = (DENSE, *OURS, *SAME_ITERATIONS, *(arm for arm in PEERS if arm not in (*LOCAL, *RANDOM)))
UNSEEN = Stage('unseen', (0.15, 0.05), UNSEEN_ARMS, (0,))


def unseen() -> list[Run]:
    """The methods on scenes of another seed and difficulty, on which nothing was tuned.

    Two cuts, one learning rate; Torch-Pruning with one threshold, which is better on the other scenes, none at random.
    """
    return runs_of((UNSEEN,))


HALF_ARMS = (DENSE, *OURS, *UNIFORM, *(arm for arm in PEERS if arm not in RANDOM))
HALF = Stage('digits', (0.5,), HALF_ARMS, (0, 1, 2))


def half() -> list[Run]:
    """A cut that ``peers`` leaves out: half of the digits' MACs, without pruning at random."""
    return runs_of((HALF,))


def quick() -> list[Run]:
    """Every method once, in a minute or two: whether all of them work, not which is better."""
    arms = [replace(arm, rates=(1.0,), shares=(1.0,) if arm is DENSE else (0.3,)) for arm in ARMS]
    return [run for arm in arms for run in arm.runs('digits_quick', (), FRESH[:1])]


SCHEDULES = {
    'digits': ((0.1, 0.15), (0.2, 0.25), (0.35, 0.4), (0.5, 0.55)),
    'scenes': ((0.1, 0.15), (0.2, 0.25), (0.5, 0.55)),
}


def dense(task: str, seeds: Sequence[int] = FRESH) -> list[Run]:
    """The dense starts of a task, trained on without gates."""
    return [Run(task, DENSE.method, 1.0, seed) for seed in seeds]


def schedules() -> list[Run]:
    """When to cut: the ramp's end and the settling of the gates, as shares of the run."""
    runs = []
    for task, pairs in SCHEDULES.items():
        runs += dense(task)
        for (end, settle), share, seed in product(pairs, (0.3, 0.15), FRESH):
            label, options = f'waterline-{end:g}-{settle:g}', {'end': end, 'settle': settle}
            runs.append(Run(task, 'gdp', share, seed, label, options))
    return runs


CUTS = (0.3, 0.15, 0.05)
UPDATES: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {  # task -> MACs kept, seeds
    'digits': (CUTS, tuple(range(6))),  # short runs, which scatter
    'scenes': (CUTS, FRESH),
    'unseen': (CUTS[1:], (3, 4, 5)),  # ``unseen`` has the others
}


def updates() -> list[Run]:
    """The two updates of the gates with the same schedule, and a penalty on the norms' scales instead of gates."""
    runs = []
    for task, (shares, seeds) in UPDATES.items():
        runs += dense(task, seeds)
        for arm, share, seed in product((GDP, GRADIENT), shares, seeds):
            runs.append(arm.run(task, share, seed, 1.0))  # the default schedule, as in ``peers``
    for task in SCHEDULES:
        for penalty, seed in product((1e-4, 1e-3, 1e-2), FRESH):
            runs.append(Run(task, 'l1', 0.3, seed, f'{penalty:g}', {'penalty': penalty, 'settle': 0.25}))
    return runs


def settling() -> list[Run]:
    """``gradient`` on the digits, with more and more time for the gates to settle."""
    runs = []
    for settle in (0.25, 0.3, 0.35):
        options = {'update': 'gradient', 'settle': settle}
        later = replace(GRADIENT, label=f'gradient-settle-{settle:g}', options=options)
        arm = GRADIENT if settle == 0.25 else later  # the default
        runs += [arm.run('digits', share, seed, 1.0) for share, seed in product(CUTS[1:], range(6))]
    return runs


def divisors() -> list[Run]:
    """The cost of rounding widths: any widths against multiples of ``divisor='auto'``."""
    runs = []
    for task, arms in (('digits', OURS), ('scenes', (GDP,))):
        runs += dense(task)
        for arm, share, seed in product(arms, (0.3, 0.15), FRESH):
            runs.append(arm.run(task, share, seed, 1.0))  # any widths, as in ``peers``
            label, options = f'{arm.label}-divisor-auto'.strip('-'), {**arm.options, 'divisor': 'auto'}
            runs.append(Run(task, arm.method, share, seed, label, options))
    return runs


STREAMS = {'narrowed': {}, 'whole': {'exclude': ['*norm*']}}


def streams() -> list[Run]:
    """Residual streams that norms across channels read: narrowed like the rest, or whole at the same MACs."""
    runs = dense('segformer')
    for (label, options), seed in product(STREAMS.items(), FRESH):
        runs.append(Run('segformer', 'gdp', 0.3, seed, label, options))
    return runs


PLANS: dict[str, Callable[[], list[Run]]] = {
    'peers': peers,
    'unseen': unseen,
    'half': half,
    'quick': quick,
    'schedules': schedules,
    'updates': updates,
    'settling': settling,
    'divisors': divisors,
    'streams': streams,
}
