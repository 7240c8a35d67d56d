"""tools/analysis_tools/importance.py: the Taylor estimate ranks the gates of a net as closing each of them does."""

import json

import importance
import pytest
import torch
import train
from conftest import CONFIGS
from digits_data import write_digits
from torch import nn

from mmprune_gates import cli, trace_channels
from mmprune_gates.engine.checkpoint import STATE
from mmprune_gates.gates import DecoratorGate, attach_gates, gates_of
from mmprune_gates.pruning.shrink import shrink

pytestmark = pytest.mark.models
DENSE, GATED = (str(CONFIGS / 'demo' / f'{kind}_resnet20_digits.py') for kind in ('dense', 'gbn'))
EPOCHS = 4


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(checkpoint of ResNet-20 after a few epochs, ``--cfg-options`` that name the data)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp('importance')
    write_digits(root / 'digits')
    data = [f'{part}_dataloader.dataset.data_root={root / "digits"}' for part in ('train', 'val')]
    run = ['train_cfg.max_epochs', 'train_cfg.val_interval', 'default_hooks.checkpoint.interval', 'param_scheduler.end']
    options = ['--cfg-options', *data, *(f'{key}={EPOCHS}' for key in run)]
    assert train.main([DENSE, '--work-dir', str(root / 'work'), *options]) == 0
    return str(root / 'work' / f'epoch_{EPOCHS}.pth'), ['--cfg-options', *data]


@pytest.mark.slow
def test_the_estimate_ranks_as_the_truth_does(trained, tmp_path, capsys):
    checkpoint, options = trained
    path = tmp_path / 'importance.json'
    assert importance.main([GATED, checkpoint, '--batches', '4', '--json', str(path), *options]) == 0
    report = json.loads(path.read_text())
    correlation = report['correlation']
    assert correlation['all']['gates'] == 448 == correlation['single']['gates'] + correlation['tied']['gates']
    assert report['batches'] == 4 and correlation['all']['spearman'] >= 0.9
    sizes = {'single': 0, 'tied': 0}
    for group in report['groups']:
        assert len(group['importance']) == len(group['loss_change'])
        sizes['single' if group['members'] == 1 else 'tied'] += len(group['importance'])
    assert sizes == {kind: correlation[kind]['gates'] for kind in sizes}
    assert f'all{448:29}{correlation["all"]["spearman"]:10.3f}' in capsys.readouterr().out


def test_the_model_is_what_it_was(trained):
    checkpoint, options = trained
    parser = cli.config_parser('')
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    config = cli.runner_config(parser.parse_args([GATED, *options]))
    model = importance.gated_model(config, checkpoint).eval()
    batches = importance.training_batches(config, model, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = torch.load(checkpoint, weights_only=True)['state_dict']
    with importance.as_in_a_tick(model):
        assert model.backbone.training
        first, second = (list(importance.batch_losses(model, batches)) for _ in range(2))
        assert first == second
        importance.importance(gates_of(model), lambda: importance.batch_losses(model, batches))
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(torch.equal(before[name], dense[name]) for name in dense if 'running' in name)


def test_checkpoints_of_a_run_that_channels_have_left(trained, tmp_path):
    parser = cli.config_parser('')
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    config = cli.runner_config(parser.parse_args([GATED, *trained[1]]))
    model = importance.gated_model(config, trained[0])
    kept = gates_of(model).graph.kept({'backbone.layer1.0.conv1': torch.arange(16) < 5})
    shrink(model, kept)
    state = {'shrunk': [kept.vector], 'settled': False}
    torch.save({'state_dict': model.state_dict(), STATE: state}, tmp_path / 'shrunk.pth')
    left = importance.gated_model(config, str(tmp_path / 'shrunk.pth'))
    assert left.backbone.layer1[0].conv1.out_channels == 5
    assert gates_of(left)['backbone.layer1.0.conv1'].theta.shape[-1] == 5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.first(x))


def test_both_measures_of_a_linear_net_by_hand():
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(5, 3, dtype=torch.double)
    attach_gates(net, trace_channels(Net(), (torch.zeros(2, 3),)), DecoratorGate)
    gates = gates_of(net)
    part = (net.first.weight @ x.T + net.first.bias[:, None]) * net.last.weight.T  # what each channel adds, (4, 5)
    group = gates.graph.free[0]
    span, theta = group.span, gates[group.name].theta
    values = torch.tensor([[0.5, 2, -1, 3]], dtype=torch.double)
    with torch.no_grad():
        theta.copy_(values)
    expected = (values.T * part).abs().sum(1).detach()
    losses = lambda: (net(one[None]).sum() for one in x)  # noqa: E731
    torch.testing.assert_close(importance.importance(gates, losses)[span], expected)
    torch.testing.assert_close(importance.brute_force(gates, losses)[span], expected)
    assert torch.equal(theta, values)


def test_closed_gates_are_not_ranked():
    net = Net()
    attach_gates(net, trace_channels(Net(), (torch.zeros(2, 3),)), DecoratorGate)
    gates = gates_of(net)
    kept = torch.ones(gates.graph.num_channels, dtype=torch.bool)
    span = gates.graph.free[0].span
    kept[span][1] = False
    gates.close(gates.graph.keeping(kept))
    assert importance.is_open(gates)[span].tolist() == [True, False, True, True]
    assert importance.is_open(gates).sum() == 3  # input and output have no gate


def test_without_anything_to_rank_there_is_no_correlation():
    assert importance.agreement(torch.zeros(3), torch.arange(3.0)) is None
    assert importance.agreement(torch.zeros(0), torch.zeros(0)) is None
