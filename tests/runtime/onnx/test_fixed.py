"""A file for fixed sizes has no dynamic axis, holds models that need that, and is measured on batches of any size."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.errors import LoweringError
from bnas.runtime import OnnxModule, SessionError, evaluate_onnx
from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.int8 import Int8


class Dynamic(nn.Module):
    """A convolution whose weights depend on the image, as one group for each image (CondConv, StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weights, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 8 * 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        count, _, height, width = x.shape
        weights = self.weights(x.mean((2, 3))).view(count * 8, 8, 1, 1)
        y = F.conv2d(x.reshape(1, count * 8, height, width), weights, groups=count).view(count, 8, height, width)
        return self.last(y.relu().mean((2, 3))), y


def shape_of(path: Path) -> list[int | str]:
    (given,) = onnx.load(path).graph.input
    return [one.dim_param or one.dim_value for one in given.type.tensor_type.shape.dim]


@pytest.mark.parametrize("count", [1, 2])
def test_all_sizes_are_those_of_the_example(count: int, tmp_path: Path) -> None:
    net, images = Dynamic().eval(), torch.randn(4, 3, 6, 6)
    path = export_onnx(net, tmp_path / "a.onnx", images[:count], fixed=True).path
    assert shape_of(path) == [count, 3, 6, 6]
    found = OnnxModule(path)
    for batch in (images[:count], images):
        torch.testing.assert_close(found(batch), net(batch))
    if count == 2:
        with pytest.raises(SessionError, match=r"a\.onnx, on inputs of"):
            found(images[:3])
    with pytest.raises(LoweringError, match=r"group that follows the sizes of the inputs.*fixed=True"):
        export_onnx(net, tmp_path / "b.onnx", images)


def test_int8_is_calibrated_and_measured_on_pieces(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).eval()
    data = [(images, net(images).argmax(1)) for images in torch.randn(40, 3, 6, 6).split(20)]
    report = export_onnx(net, tmp_path / "a.onnx", data[0][0][:1], Int8(data, validation=data), fixed=True)
    assert report.int8 is not None
    assert (report.int8.samples, report.int8.metric_fp32) == (40, 1.0)
    assert shape_of(report.path) == [1, 3, 6, 6]
    assert evaluate_onnx(report.path, data) == report.int8.metric_int8 > 0.8


def test_a_file_without_a_batch_is_not_run_in_pieces(tmp_path: Path) -> None:
    """What a model computes over axis 0 would be another value in pieces."""

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0)

    path = export_onnx(Sums().eval(), tmp_path / "a.onnx", torch.randn(2, 3), fixed=True).path
    with pytest.raises(SessionError, match="on inputs of"):
        OnnxModule(path)(torch.randn(4, 3))
