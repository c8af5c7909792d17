"""The moving average of the weights."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from softmaxce.build import build_run
from softmaxce.training.ema import ExponentialMovingAverage

from ..helpers import config


def test_a_moving_average_is_torchs_own_bit_for_bit() -> None:
    model = build_run(config(model={"name": "cnn", "channels": [4, 8]})).model
    ours = ExponentialMovingAverage(model, 0.9)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape) * 100)
        ours.update_parameters(model)
        torchs.update_parameters(model)
    assert all(map(torch.equal, ours.state_dict().values(), torchs.state_dict().values()))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
